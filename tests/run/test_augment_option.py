"""``finetune --augment``: every augmentation by the same command; models begun from ImageNet weights."""

import json
import math

import pytest
import torch
import yaml
from run_command import finetune_arguments
from safetensors.torch import load_file, save_file

from taf_fast import models
from taf_fast.augment import MIXINGS
from taf_fast.run.config import ADVERSARIAL, AUGMENTS, FinetuneConfig


def steps_of(folder):
    return [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines() if "step_" in line
    ]


@pytest.fixture(scope="module")
def first_losses(dataset, tmp_path_factory):
    """Return the metrics of every augmentation's first step, from the same weights and clips."""
    from taf_fast.run.finetune import finetune

    found = {}
    for augment in AUGMENTS:
        out = tmp_path_factory.mktemp("runs") / augment
        config = FinetuneConfig(
            data=str(dataset),
            out=str(out),
            augment=augment,
            model="tsm_resnet18",
            size=32,
            batch_size=8,
            epochs=1,
            lr=0.01,
            composition="all",
        )
        result = finetune(config)
        weights = load_file(result.weights)
        assert not any("adversarial" in name for name in weights), augment
        assert yaml.safe_load((out / "config.yaml").read_text())["augment"] == augment
        found[augment] = steps_of(out)[0]
    return found


@pytest.mark.slow
def test_every_augmentation_trains(first_losses):
    plain = first_losses["none"]
    for augment, measured in first_losses.items():
        assert math.isfinite(measured["loss"]) and measured["clips"] == 8
        if augment in MIXINGS:
            assert "clean_loss" not in measured and "attacked" not in measured
        else:
            # The clean forward is the same; only the additional loss differs.
            assert measured["clean_loss"] == pytest.approx(plain["clean_loss"], rel=1e-6), augment
    adversarial = {augment: first_losses[augment]["adv_loss"] for augment in ADVERSARIAL}
    assert all(first_losses[augment]["attacked"] == 8 for augment in ADVERSARIAL)
    assert len({round(loss, 9) for loss in adversarial.values()}) == len(ADVERSARIAL)


def test_its_options_are_the_run_s():
    given = dict(epsilon=0.1, step_size=0.05, steps=3, attack_bn="batch")
    given |= dict(num_frames=2, denominator="range", gradient="logit")
    for augment, own in (
        ("ta", given),
        ("ce", ("epsilon", "step_size", "steps", "attack_bn")),
        ("noise", ("epsilon", "step_size")),
        ("advprop", ("epsilon", "step_size", "steps")),
    ):
        attack = FinetuneConfig(data="d", out="o", augment=augment, **given).attack()
        values = vars(attack) | (vars(attack.objective) if augment == "ta" else {})
        assert {name: values[name] for name in own} == {name: given[name] for name in own}, augment


def test_unknown_augmentation(tmp_path, error):
    message = error(*finetune_arguments(tmp_path, tmp_path / "run", augment="mixdown"))
    assert message == f"error: augment must be one of {', '.join(AUGMENTS)}, got 'mixdown'\n"


def imagenet_file(path, seed):
    """A file as torchvision's ResNet-18 has it, of random weights."""
    torch.manual_seed(seed)
    model = models.build("tsm_resnet18", 5, 8)
    trunk = {
        name.removeprefix("backbone."): tensor.clone()
        for name, tensor in model.state_dict().items()
        if name.startswith("backbone.")
    }
    save_file(trunk | {"fc.weight": torch.rand(1000, 512), "fc.bias": torch.rand(1000)}, path)
    return trunk


@pytest.mark.slow
def test_from_imagenet(dataset, tmp_path, seed, output, error):
    weights, out = tmp_path / "resnet18.safetensors", tmp_path / "run"
    trunk = imagenet_file(weights, seed)
    arguments = finetune_arguments(dataset, out, imagenet=weights, epochs=1, lr=1e-9, augment="none")
    printed = output(*arguments)
    assert "resnet (torchvision)" in printed and "2 missing" in printed
    trained = load_file(out / "model.safetensors")
    for name, tensor in trunk.items():
        if name.endswith("weight"):
            torch.testing.assert_close(trained[f"backbone.{name}"], tensor, rtol=0, atol=1e-5)
    message = error(*arguments, "--checkpoint", out / "model.safetensors", "--out", tmp_path / "c")
    assert message.startswith("error: imagenet must be none where there is a checkpoint, got ")
    weights.write_bytes(b"")
    message = error(*finetune_arguments(dataset, tmp_path / "d", imagenet=weights))
    assert str(weights) in message and not (tmp_path / "d").exists()
