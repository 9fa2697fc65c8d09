"""TSM's parameter groups, by their published counts, and the step schedule."""

import pytest

from taf_fast import add_adversarial_bn, models
from taf_fast.run.config import FinetuneConfig
from taf_fast.run.optim import build_sgd, set_learning_rate


def groups(model, boost):
    optimizer = build_sgd(model, 0.1, 0.9, 5e-4, boost)
    return {(g["lr_scale"], g["weight_decay"]): len(g["params"]) for g in optimizer.param_groups}


def test_groups_of_tsm_resnet50():
    model = models.build("tsm_resnet50", 174)
    # 53 convolutions, 106 batch-norm parameters, and the classifier apart when it starts from noise.
    assert groups(model, True) == {(1, 5e-4): 53, (1, 0): 106, (5, 5e-4): 1, (10, 0): 1}
    assert groups(model, False) == {(1, 5e-4): 54, (1, 0): 106, (2, 0): 1}
    add_adversarial_bn(model)
    assert groups(model, False) == {(1, 5e-4): 54, (1, 0): 212, (2, 0): 1}


def test_learning_rate():
    config = FinetuneConfig(data="d", out="o", lr=1.0, lr_steps=(2, 4), epochs=6)
    assert [config.learning_rate(e) for e in range(6)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    optimizer = build_sgd(models.build("tsm_resnet18", 3), 1.0, 0.9, 0, True)
    set_learning_rate(optimizer, 0.5)
    assert sorted({g["lr"] for g in optimizer.param_groups}) == [0.5, 2.5, 5.0]


def test_config_comes_back(tmp_path):
    config = FinetuneConfig(data="d", out="o", lr_steps=(2, 4), num_frames=3)
    config.write(tmp_path / "c.yaml")
    assert FinetuneConfig.read(tmp_path / "c.yaml") == config
