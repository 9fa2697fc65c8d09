"""Enlarging the centre of pictures to their own size."""

import math

import torch.nn.functional as F
from torch import Tensor


def zoom(planes: Tensor, factor: float) -> Tensor:
    """The central ceil(size / factor) pixels of [N,C,H,W] enlarged by ``factor`` >= 1, bilinearly with the
    centres of the corner pixels kept, and trimmed at both ends to H x W."""
    sizes = planes.shape[-2:]
    shown = [math.ceil(size / factor) for size in sizes]
    # Python's rounding, as scipy's.
    enlarged = [round(length * factor) for length in shown]
    centre = _centre(planes, shown)
    return _centre(F.interpolate(centre, enlarged, mode="bilinear", align_corners=True), sizes)


def _centre(planes: Tensor, sizes: list[int]) -> Tensor:
    for axis, size in zip((-2, -1), sizes, strict=True):
        planes = planes.narrow(axis, (planes.shape[axis] - size) // 2, size)
    return planes
