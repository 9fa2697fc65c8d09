"""Parameter groups by their published counts, optimisers, the rate of every step, and configurations."""

import dataclasses
import itertools
import math
from pathlib import Path

import pytest
import torch

from taf_fast import add_adversarial_bn, models
from taf_fast.errors import RunError
from taf_fast.run.config import FinetuneConfig
from taf_fast.run.optim import build_optimizer, learning_rates, set_learning_rate


def config(**values):
    return FinetuneConfig(data="d", out="o", **values)


def groups(model, boost, **values):
    optimizer = build_optimizer(model, config(lr=0.1, fc_lr5=boost, **values))
    return {(g["lr_scale"], g["weight_decay"]): len(g["params"]) for g in optimizer.param_groups}


def test_groups_of_tsm_resnet50():
    model = models.build("tsm_resnet50", 174)
    # 53 convolutions, 106 batch-norm parameters, and the classifier apart when it starts from noise.
    assert groups(model, True) == {(1, 5e-4): 53, (1, 0): 106, (5, 5e-4): 1, (10, 0): 1}
    assert groups(model, False) == {(1, 5e-4): 54, (1, 0): 106, (2, 0): 1}
    add_adversarial_bn(model)
    assert groups(model, False) == {(1, 5e-4): 54, (1, 0): 212, (2, 0): 1}


def test_groups_of_the_other_families():
    # GST: 53 convolutions and 16 temporal ones; TAM and TPN decay everything.
    assert groups(models.build("gst_resnet50", 174), False) == {(1, 5e-4): 70, (1, 0): 106, (2, 0): 1}
    for name in ("tam_resnet18", "tpn_resnet18"):
        model = models.build(name, 5)
        assert groups(model, False) == {(1, 5e-4): len(list(model.parameters()))}
        with pytest.raises(ValueError, match="fc_lr5 is a rule of TSM's training"):
            groups(model, True)
    optimizer = build_optimizer(model, config(nesterov=True, weight_decay=0.0, momentum=0.8))
    assert type(optimizer) is torch.optim.SGD
    (group,) = optimizer.param_groups
    assert (group["nesterov"], group["weight_decay"], group["momentum"]) == (True, 0, 0.8)


@pytest.mark.parametrize("name", ["tsm_resnet18", "gst_resnet18", "tam_resnet18", "tpn_resnet18"])
def test_a_new_head_has_a_factor_of_its_own(name):
    """In every family, for the weights and biases of every classifier, and for nothing else."""
    model = models.build(name, 5)
    before = build_optimizer(model, config(lr=0.25))
    after = build_optimizer(model, config(lr=0.25, new_head=True, checkpoint="c", new_head_lr_factor=3.0))
    rates = [
        {p: g["lr"] for g in optimizer.param_groups for p in g["params"]} for optimizer in (before, after)
    ]
    heads = {
        p for key, p in model.named_parameters() if key in ("fc.weight", "fc.bias") or "auxiliary.fc" in key
    }
    assert len(heads) == (4 if name == "tpn_resnet18" else 2)
    for parameter in model.parameters():
        assert rates[1][parameter] == rates[0][parameter] * (3 if parameter in heads else 1)


def test_adamw():
    """Its first step is lr times the gradient's sign, after weights have lost lr times their decay."""
    model = models.build("gst_resnet18", 3, 2)
    optimizer = build_optimizer(model, config(optimizer="adamw", lr=0.01, weight_decay=0.5))
    assert type(optimizer) is torch.optim.AdamW
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        norm = ".bn" in name or ".downsample.1." in name
        lr, decay = (0.02, 0) if name.endswith("bias") and not norm else (0.01, 0 if norm else 0.5)
        expected = before[name] * (1 - lr * decay) - lr
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-6)


def rates(steps, done=0, **values):
    return list(itertools.islice(learning_rates(config(**values), 3, done), steps))


def test_multistep():
    found = rates(18, lr=0.3, lr_steps=(2, 4), epochs=6)
    assert found == [0.3 * 0.1 ** (epoch // 2) for epoch in range(6) for _ in range(3)]  # to the last bit
    optimizer = build_optimizer(
        models.build("tsm_resnet18", 3), config(lr=1.0, fc_lr5=True, weight_decay=0.0)
    )
    set_learning_rate(optimizer, 0.5)
    assert sorted({g["lr"] for g in optimizer.param_groups}) == [0.5, 2.5, 5.0]


@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.parametrize("schedule", ["multistep", "cosine", "constant"])
def test_schedules(schedule, warmup):
    values = dict(lr=0.3, schedule=schedule, warmup_epochs=warmup, lr_steps=(3,), epochs=5)
    rise, steps = 3 * warmup, 15
    decay = {
        "multistep": lambda step: 0.1 if step >= 9 else 1.0,
        "cosine": lambda step: (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2,
        "constant": lambda step: 1.0,
    }[schedule]
    expected = [0.3 * ((step + 1) / (rise + 1) if step < rise else decay(step)) for step in range(steps)]
    assert rates(steps, **values) == pytest.approx(expected, rel=1e-12)
    for done in (1, rise, 8, 14):
        assert rates(steps - done, done, **values) == rates(steps, **values)[done:]
    if schedule != "cosine":
        assert rates(steps, **values | {"epochs": 9}) == rates(steps, **values)


def test_epochs_may_grow_when_a_run_is_resumed():
    earlier = config(epochs=5)
    config(epochs=9).require_same_run(earlier, resume=True)
    with pytest.raises(RunError, match="epochs: 5 there, 9 now"):
        config(epochs=9).require_same_run(earlier)
    with pytest.raises(RunError, match="epochs: 5 there, 3 now"):
        config(epochs=3).require_same_run(earlier, resume=True)
    earlier = config(epochs=5, schedule="cosine")
    with pytest.raises(RunError, match="epochs must be 5, as the run has, got 9: with schedule cosine, the"):
        config(epochs=9, schedule="cosine").require_same_run(earlier, resume=True)


def test_config_comes_back(tmp_path):
    written = config(
        lr_steps=(2, 4), num_frames=3, flip=True, swap=((0, 1), (3, 2)), ema=0.9, keep_best="top1"
    )
    written.write(tmp_path / "c.yaml")
    there = dataclasses.replace(written, data=Path.cwd() / "d", out=Path.cwd() / "o")
    assert FinetuneConfig.read(tmp_path / "c.yaml") == there


@pytest.mark.parametrize(
    "values, message",
    [
        ({"lr": "1e-4"}, "lr must be float, got '1e-4'"),
        ({"epochs": 1.5}, "epochs must be int, got 1.5"),
        ({"flip": 1}, "flip must be bool, got 1"),
        ({"clip_grad": True}, "clip_grad must be float or none, got True"),
        ({"lr_steps": 10}, r"lr_steps must be tuple\[int, ...\], got 10"),
        ({"swap": ((1, 2), (2, 3)), "flip": True}, "no class in two of them"),
        ({"class_order": "random"}, "class_order must be one of alphabetical, raw"),
        ({"clip_grad": 0.0}, "clip_grad must be above 0, or none"),
        ({"new_head": True}, "new_head must be off where there is no checkpoint, got True"),
        ({"new_head": True, "checkpoint": "c", "fc_lr5": True}, "fc_lr5 must be off with new_head"),
        (
            {"new_head": True, "checkpoint": "c", "class_order": "raw"},
            "class_order must be none with new_head",
        ),
        ({"new_head_lr_factor": 0.0}, "new_head_lr_factor must be above 0 and at most 1000000, got 0.0"),
        ({"warmup_epochs": 15}, "warmup_epochs must be below epochs = 15, got 15"),
        ({"warmup_epochs": 11}, r"lr_steps must be at least warmup_epochs = 11, got \(10,\)"),
        ({"ema": 1.0}, r"ema must be in \[0,1\), or none, got 1.0"),
        ({"keep_best": "top2"}, "keep_best must be one of top1, top5, loss, or none, got 'top2'"),
        ({"patience": 2}, "patience must be none without keep_best, which names the score, got 2"),
        ({"patience": 0, "keep_best": "loss"}, "patience must be at least 1, or none, got 0"),
    ],
    ids=str,
)
def test_values_are_checked(values, message):
    with pytest.raises(RunError, match=message):
        FinetuneConfig(data="d", out="o", **values)
