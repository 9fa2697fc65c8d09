"""Clips, labels and options that do not fit are errors that name them, in steps, augmentations and ops."""

import numpy as np
import pytest
import torch

import taf_fast
from taf_fast import ops

LABELS = {
    "labels must be from 0 to 3, got 4, -1 at 1, 2 of the batch": torch.tensor([0, 4, -1]),
    "labels must be from 0 to 3, got -100 at 2 of the batch": torch.tensor([0, 1, -100]),
    "expected int64 labels of shape [3], got torch.int64 [2]": torch.tensor([0, 1]),
    "expected int64 labels of shape [3], got torch.float32 [3]": torch.tensor([0.0, 1.0, 2.0]),
    "expected int64 labels of shape [3], got torch.int32 [3]": torch.tensor([0, 1, 2], dtype=torch.int32),
    "expected labels as a torch.Tensor, got ndarray": np.array([0, 1, 2]),
    "expected labels as a torch.Tensor, got list": [0, 1, 2],
}
CLIPS = torch.arange(3 * 2 * 32 * 32 * 3).view(3, 2, 32, 32, 3).to(torch.uint8)


@pytest.fixture(scope="module")
def callers():
    """All that takes clips and labels, on a model of four classes."""
    model = taf_fast.models.build("tsm_resnet18", num_classes=4, num_segments=2)
    plain = taf_fast.PlainStep(model, compile=False)
    mixing = taf_fast.PlainStep(model, compile=False, mix=taf_fast.augment.MIXINGS["mixup"])
    taf_fast.add_adversarial_bn(model)
    augments = taf_fast.TemporalAugment(), taf_fast.CrossEntropyAugment(), taf_fast.AdvPropAugment(steps=1)
    steps = [taf_fast.TAFStep(model, augment, compile=False) for augment in augments]
    calls = [plain, plain.accumulate_grads, mixing, *steps, *(step.accumulate_grads for step in steps)]
    for augment in augments:
        calls.append(lambda clips, labels, augment=augment: augment(model, clips, labels))
    return model, calls


@pytest.mark.parametrize("message", LABELS)
def test_labels(callers, message):
    model, calls = callers
    for call in calls:
        with pytest.raises(ValueError) as refused:
            call(CLIPS, LABELS[message])
        assert str(refused.value) == message
    assert all(parameter.grad is None for parameter in model.parameters())


def test_clips(callers):
    for call in callers[1]:
        with pytest.raises(ValueError, match="^expected clips as a torch.Tensor, got ndarray"):
            call(CLIPS.numpy(), torch.tensor([0, 1, 2]))


def test_numpy_arrays_and_targets_of_ops():
    array = np.ones((2, 3, 4, 5, 5), dtype=np.float32)
    tensor, matrix, two = torch.from_numpy(array), torch.ones(4, 4), torch.tensor([0, 1])
    logits = matrix[:2]
    for name, call in (
        ("features", lambda: ops.frame_cam(array, tensor)),
        ("grads", lambda: ops.frame_cam(tensor, array)),
        ("grads", lambda: ops.frame_cam(tensor, array.mean((3, 4)))),
        ("cam", lambda: ops.cam_loss(array[0], 1)),
        ("x", lambda: ops.temporal_shift(array[0], 1)),
        ("x", lambda: ops.pgd_step(array, tensor, tensor, 0.1, 0.1)),
        ("grad", lambda: ops.pgd_step(None, array, tensor, 0.1, 0.1)),
        ("clean", lambda: ops.pgd_step(None, tensor, array, 0.1, 0.1)),
        ("weight", lambda: ops.cam_gradient(tensor, matrix.numpy(), logits, two, 1)),
        ("logits", lambda: ops.cam_gradient(tensor, matrix, logits.numpy(), two, 1)),
        ("targets", lambda: ops.cam_gradient(tensor, matrix, logits, two.numpy(), 1)),
        ("mask", lambda: ops.cam_gradient(tensor, matrix, logits, two, 1, mask=array[..., 0, 0])),
    ):
        with pytest.raises(ValueError, match=f"^{name} must be a torch.Tensor, got ndarray$"):
            call()
    for name in ("step_size", "epsilon", "lower", "upper"):
        with pytest.raises(ValueError, match=f"^{name} must be a number or a torch.Tensor, got ndarray$"):
            ops.pgd_step(None, tensor, tensor, **{"step_size": 0.1, "epsilon": 0.1} | {name: np.ones(4)})
    for value in (4, -1):
        with pytest.raises(ValueError, match=f"^targets must be from 0 to 3, got {value} at 1 of the batch$"):
            ops.cam_gradient(tensor, matrix, logits, torch.tensor([0, value]), 1)


@pytest.mark.parametrize(
    "make",
    [
        taf_fast.TemporalAugment,
        taf_fast.CrossEntropyAugment,
        taf_fast.NoiseAugment,
        taf_fast.AdvPropAugment,
        lambda **options: taf_fast.SignAttack(taf_fast.TemporalAugment().objective, **options),
    ],
)
def test_amounts_of_pixels_are_between_0_and_1(make):
    for name in ("epsilon", "step_size"):
        for value in (64, -0.1, float("nan"), torch.tensor([0.1, 64.0])):
            with pytest.raises(ValueError, match=f"^{name} must be between 0 and 1, .* are 64/255, got "):
                make(**{name: value})
        with pytest.raises(ValueError, match=f"^{name} must be a number or a torch.Tensor, got ndarray$"):
            make(**{name: np.ones(3)})


def test_augmentations_print_themselves():
    augment = taf_fast.TemporalAugment(epsilon=16 / 255, step_size=0.1, num_frames=3, denominator="range")
    text = (
        "TemporalAugment(epsilon=16/255, step_size=0.1, steps=1, num_frames=3, denominator='range', "
        "attack_bn='frozen', relu=False, gradient='loss', label='outcome', perturb='all', clamp=True)"
    )
    assert repr(augment) == text
    again = eval(text, vars(taf_fast))
    assert vars(again) | {"objective": None} == vars(augment) | {"objective": None}
    assert vars(again.objective) == vars(augment.objective)
    assert repr(taf_fast.AdvPropAugment()) == "AdvPropAugment(epsilon=4/255, step_size=1/255, steps=5)"
    assert repr(taf_fast.SignAttack(augment.objective)).startswith(
        "SignAttack(objective=TemporalAttention(num_frames=3, denominator='range', relu=False, "
        "gradient='loss', perturb='all'), epsilon=64/255, "
    )
    step = taf_fast.TAFStep(
        taf_fast.add_adversarial_bn(taf_fast.models.build("tsm_resnet18", 2)), augment, compile=False
    )
    assert f"augment={text}, alpha=0.7, composition='wrong'" in repr(step)
