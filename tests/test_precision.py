"""No switch changes a step by more than its precision does. The float64 reference, and the same reference in
that precision, set the bound."""

import copy

import pytest
import torch
from reference.step import losses_at, share_all_but_batch_norm
from reference.temporal_augment import Net, attack, clips_in_range
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from taf_fast import TAFStep, TemporalAugment, add_adversarial_bn, channels_last, models
from taf_fast.bench.steps import first_clips
from taf_fast.precision import autocast

ATTACK = dict(epsilon=64 / 255, step_size=32 / 255, steps=1, num_frames=3, denominator="max")
ROWS = [0, 1, 2, 3]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def make(name, generator):
    """A float64 model, clips and labels."""
    torch.manual_seed(generator.initial_seed())
    model = Net(segments=3) if name == "net" else models.build(name, 5, 3, dropout=0.0)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    model.fc.weight.data *= 4 if name == "net" else 100
    model = model.double()
    return model, clips_in_range(model, 6, 3, 40, generator), torch.tensor([0, 3, 1, 4, 2, 0])


def textbook(model, x, moved, labels, dtype, precision):
    """Losses, gradients and running statistics, given the perturbed clips: two forwards, one backward."""
    clean = copy.deepcopy(model).to(dtype)
    adversarial = copy.deepcopy(clean)
    share_all_but_batch_norm(clean, adversarial)
    with autocast(x.device, precision):
        losses = losses_at(clean, adversarial, x.to(dtype), moved.to(dtype), labels, ROWS, 0.7)
    losses[0].backward()
    found = dict(zip(("loss", "clean_loss", "adv_loss"), losses, strict=True)) | dict(clean.named_buffers())
    found |= {f"gradient of {name}": p.grad for name, p in clean.named_parameters()}
    for name, module in adversarial.named_modules():
        if isinstance(module, _BatchNorm):
            found |= {f"gradient of {name}.adversarial.{n}": p.grad for n, p in module.named_parameters()}
            found |= {f"{name}.adversarial.{n}": value for n, value in module.named_buffers()}
    return {name: value.detach().double() for name, value in found.items()}


def ours(model, x, labels, precision, last, compile):
    torch._dynamo.reset()  # other tests may have compiled too much already
    model = add_adversarial_bn(copy.deepcopy(model).float())
    x = x.float()
    if last:
        channels_last(model)
        x = x.movedim(2, -1).contiguous().movedim(-1, 2)
    step = TAFStep(
        model, TemporalAugment(**ATTACK, label="true"), composition=first_clips(len(ROWS)), compile=compile
    )
    moved, attack_of = [], step.augment.attack

    def remembering(*args):
        moved.append(attack_of(*args))
        return moved[0]

    step.augment.attack = remembering
    with autocast(x.device, precision):
        out = step.accumulate_grads(x, labels)
    assert out["attacked"] == len(ROWS) and out["failed"] == 0
    found = {name: out[name] for name in ("loss", "clean_loss", "adv_loss")} | dict(model.named_buffers())
    found |= {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
    return {name: value.detach().double() for name, value in found.items()}, moved[0][0].double()


def error(actual, exact):
    return ((actual - exact).norm() / exact.norm().clamp(min=1e-12)).item()


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "name, last, compile, precision",
    [
        ("tsm_resnet18", False, False, "float32"),
        ("tsm_resnet18", True, False, "float32"),
        ("gst_resnet18", True, False, "float32"),
        ("tsm_resnet18", False, False, "bfloat16"),
        ("tsm_resnet18", True, False, "bfloat16"),
        ("gst_resnet18", True, False, "bfloat16"),
        ("net", True, True, "bfloat16"),  # tests/test_step.py compares the compiled step in float32
    ],
)
def test_as_exact_as_the_textbook_step(generator, name, last, compile, precision, device):
    model, x, labels = make(name, generator)
    model, x, labels = model.to(device), x.to(device), labels.to(device)
    actual, moved = ours(model, x, labels, precision, last, compile)

    # Where the gradient is nearly 0 rounding decides its sign. Where two places are nearly the maximum, or a
    # ReLU's input is nearly 0, it decides about hundreds of pixels at once, but seldom in every clip.
    expected, _ = attack(model, x, labels, ROWS, attack_bn="frozen", **ATTACK)
    with autocast(x.device, precision):
        plain, _ = attack(copy.deepcopy(model).float(), x.float(), labels, ROWS, attack_bn="frozen", **ATTACK)
    wrong, plain_wrong = (((m - expected).abs() > 1e-3).double().mean((1, 2, 3, 4)) for m in (moved, plain))
    assert wrong.min() <= 1.5 * plain_wrong.min() + 0.0005, (wrong, plain_wrong)
    if precision == "float32":  # bfloat16 may take another maximum, and half of a clip's pixels with it
        assert wrong.max() < 0.1, wrong

    # The rest is compared at the same perturbed clips.
    exact = textbook(model, x, moved, labels, torch.float64, "float32")
    plain = textbook(model, x, moved, labels, torch.float32, precision)
    assert set(actual) == set(exact) == set(plain)
    for key, value in exact.items():
        # A ReLU whose input is nearly 0 opens in one computation and not in the other, in any format.
        floor = 0.01 if key.endswith("loss") else 0.001
        floor = 0.1 if key.startswith("gradient") else floor * (5 if precision == "bfloat16" else 1)
        assert error(actual[key], value) <= 2 * error(plain[key], value) + floor, key
