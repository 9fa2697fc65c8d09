"""Parameter groups by their published counts, the step schedule, and configurations."""

import pytest

from taf_fast import add_adversarial_bn, models
from taf_fast.run.config import FinetuneConfig, RunError
from taf_fast.run.optim import build_sgd, set_learning_rate


def groups(model, boost):
    optimizer = build_sgd(model, 0.1, 0.9, 5e-4, boost, False)
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
    optimizer = build_sgd(model, 0.1, 0.9, 5e-4, False, True)
    assert optimizer.param_groups[0]["nesterov"]


def test_learning_rate():
    config = FinetuneConfig(data="d", out="o", lr=1.0, lr_steps=(2, 4), epochs=6)
    assert [config.learning_rate(e) for e in range(6)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    optimizer = build_sgd(models.build("tsm_resnet18", 3), 1.0, 0.9, 0, True, False)
    set_learning_rate(optimizer, 0.5)
    assert sorted({g["lr"] for g in optimizer.param_groups}) == [0.5, 2.5, 5.0]


def test_config_comes_back(tmp_path):
    config = FinetuneConfig(
        data="d", out="o", lr_steps=(2, 4), num_frames=3, flip=True, swap=((0, 1), (3, 2))
    )
    config.write(tmp_path / "c.yaml")
    assert FinetuneConfig.read(tmp_path / "c.yaml") == config


@pytest.mark.parametrize(
    "values, message",
    [
        ({"lr": "1e-4"}, r"lr must be float, got '1e-4' \(YAML takes 1e-4 for text: write 1.0e-4\)"),
        ({"epochs": 1.5}, "epochs must be int, got 1.5"),
        ({"flip": 1}, "flip must be bool, got 1"),
        ({"clip_grad": True}, "clip_grad must be float or none, got True"),
        ({"lr_steps": 10}, "lr_steps must be tuple, got 10"),
        ({"swap": ((1, 2), (2, 3)), "flip": True}, "no class in two of them"),
        ({"class_order": "random"}, "class_order must be one of alphabetical, raw"),
        ({"clip_grad": 0.0}, "clip_grad must be above 0, or none"),
    ],
    ids=str,
)
def test_values_are_checked(values, message):
    with pytest.raises(RunError, match=message):
        FinetuneConfig(data="d", out="o", **values)
