"""The effect of adversarial perturbations on a model's attention (the paper's Fig. 3)."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from taf_fast.measure.attention import attend, frame_shares
from taf_fast.models.pixels import per_channel, pixel_range, to_model_input

# All attacks draw their random labels from this seed, so that a command always draws the same picture.
_SEED = 0


def perturb(
    model: nn.Module, clip: Tensor, label: Tensor, augments: Mapping[str, Callable]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Perturb a clip by every augmentation, and attend to the true class of each result.

    Args:
        model: in eval mode, which makes the result reproducible.
        clip: uint8 [1,T,H,W,3].
        label: int64 [1].
        augments: name -> a :class:`taf_fast.TemporalAugment`, or another augmentation with the same call.

    Returns:
        Three mappings by name, "clean" first, all on the CPU: pixels, float [T,3,H,W] in [0,1]; attention,
        float32 [T,h,w] in [0,1], each scaled by its own maximum; and the probabilities of the classes,
        float32 [classes].

    Raises:
        RunError: the model does not have features for every frame.
    """
    clean = to_model_input(model, clip)
    inputs, seen = {"clean": clean}, {"clean": attend(model, clean, label)}
    for name, augment in augments.items():
        generator = torch.Generator(clean.device).manual_seed(_SEED)
        inputs[name] = augment(model, clean, label, generator)
        seen[name] = attend(model, inputs[name], label)
    low, high = (per_channel(bound) for bound in pixel_range(model, clean))
    pixels = {name: ((x[0] - low) / (high - low)).cpu() for name, x in inputs.items()}
    maps = {name: heat[0].cpu() for name, (heat, _) in seen.items()}
    return pixels, maps, {name: probabilities[0].cpu() for name, (_, probabilities) in seen.items()}


def perturbation_rows(pixels: dict[str, Tensor], maps: dict[str, Tensor]) -> list[dict]:
    """The numbers of :func:`perturb`.

    Returns:
        A row for every kind of clip and frame: ``kind``, ``frame`` (from 0), ``share``, the frame's share of
        the clip's attention, None for a clip without any, and ``linf``, its largest difference from the clean
        frame, for pixels in [0,1].
    """
    rows = []
    for kind, heat in maps.items():
        linf = (pixels[kind] - pixels["clean"]).abs().amax((1, 2, 3)).tolist()
        shares = frame_shares(heat[None])[0].tolist() if heat.any() else [None] * len(heat)
        for frame, (share, largest) in enumerate(zip(shares, linf, strict=True)):
            rows.append({"kind": kind, "frame": frame, "share": share, "linf": largest})
    return rows
