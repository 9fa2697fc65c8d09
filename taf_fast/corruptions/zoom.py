"""Zoom into the centre of pictures."""

import math

import torch.nn.functional as F
from torch import Tensor


def zoom(planes: Tensor, factor: float) -> Tensor:
    """Enlarge the centre of ``planes`` [N,C,H,W] by ``factor`` >= 1, keeping their shape.

    The central ceil(size / factor) pixels are enlarged bilinearly so that the corner pixels keep their
    centres, and trimmed at both ends to H x W.
    """
    sizes = planes.shape[-2:]
    shown = [math.ceil(size / factor) for size in sizes]
    # Python rounds as scipy does, whose zoom ImageNet-C uses.
    enlarged = [round(length * factor) for length in shown]
    centre = _centre(planes, shown)
    return _centre(F.interpolate(centre, enlarged, mode="bilinear", align_corners=True), sizes)


def _centre(planes: Tensor, sizes: list[int]) -> Tensor:
    for axis, size in zip((-2, -1), sizes, strict=True):
        planes = planes.narrow(axis, (planes.shape[axis] - size) // 2, size)
    return planes
