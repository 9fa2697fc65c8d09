"""Crops of a frame."""

import math
from typing import NamedTuple

import numpy as np

from taf_fast.data.clip import Box, Size

SCALES = (1, 0.875, 0.75, 0.66)
# Evaluation takes at most the middle of a frame, this many short sides long.
_LONGEST = 16


class ScaledCrop(NamedTuple):
    """A square of a resized part of a frame: ``box`` is resized to ``scaled``, where the square has its
    top left corner (y, x) at ``corner``."""

    box: Box
    scaled: Size
    corner: tuple[int, int]


def multi_scale_crop(frame: Size, size: int, rng: np.random.Generator) -> Box:
    """TSM's random crop at one of 13 fixed positions, with sides of 0.66 to 1 of the short side.

    The two sides differ by at most one scale. A side less than 3 pixels from ``size`` becomes ``size``, but
    never longer than the short side.
    """
    base = min(frame)
    sides = [max(1, int(base * scale)) for scale in SCALES]
    sides = [min(size, base) if abs(side - size) < 3 else side for side in sides]
    pairs = [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
    h, w = pairs[rng.integers(len(pairs))]
    steps_y, steps_x = FIXED_POSITIONS[rng.integers(len(FIXED_POSITIONS))]
    return Box(steps_y * ((frame.height - h) // 4), steps_x * ((frame.width - w) // 4), h, w)


# In quarters of the free space: corners, edge centres and the centre, then the four quarter points.
FIXED_POSITIONS = [(y, x) for y in (0, 2, 4) for x in (0, 2, 4)] + [(y, x) for y in (1, 3) for x in (1, 3)]


def random_resized_crop(frame: Size, rng: np.random.Generator) -> Box:
    """TPN's random crop: 0.08 to 1 of the area, with an aspect ratio of 3/4 to 4/3.

    The official code swaps the frame's width and height when it checks whether a crop fits and when it places
    the crop, and cuts off what reaches beyond the frame. Crops of wide frames are therefore narrow or flat
    more often than drawn. The released weights were trained that way, so this function does the same.
    """
    height, width = frame
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1)
        ratio = rng.uniform(3 / 4, 4 / 3)
        w = max(1, round(math.sqrt(area * ratio)))
        h = max(1, round(math.sqrt(area / ratio)))
        if rng.random() < 0.5:
            w, h = h, w
        if w <= height and h <= width:
            x = int(rng.integers(width - h + 1))
            y = int(rng.integers(height - w + 1))
            return Box(y, x, min(h, height - y), min(w, width - x))
    return _centred(frame, min(frame), min(frame))


def center_crop(frame: Size, size: int) -> ScaledCrop:
    """The central square of a resized frame: 224 pixels at a short side of 256 in the official evaluation."""
    box, scaled = _scaled(frame, size)
    # As torchvision's CenterCrop rounds.
    return ScaledCrop(box, scaled, (round((scaled.height - size) / 2), round((scaled.width - size) / 2)))


def three_crops(frame: Size, size: int) -> list[ScaledCrop]:
    """The crops of TSM's full-resolution test: squares with the short side of the resized frame, at the
    start, in the middle and at the end of its long side.

    They lie at multiples of a quarter of the free space, rounded down, so that TSM and IBM leave up to 3
    pixels at the end (TPN 1). For upright videos TSM takes the middle three times, while IBM and TPN go from
    top to bottom, as done here.
    """
    box, scaled = _scaled(frame, size)
    step = (max(scaled) - min(scaled)) // 4
    starts = [quarters * step for quarters in (0, 2, 4)]
    wide = frame.width >= frame.height
    return [ScaledCrop(box, scaled, (0, start) if wide else (start, 0)) for start in starts]


def full_size(size: int) -> int:
    """The short side in pixels to which evaluation resizes frames for a centre crop of ``size``, rounded down
    as TSM does: 256 for 224."""
    return size * 256 // 224


def _scaled(frame: Size, size: int) -> tuple[Box, Size]:
    """The part of the frame that evaluation resizes, and the size that this part gets. It is the whole frame,
    except for the ends of frames so long that the resized one would need memory without bound."""
    short, side = min(frame), full_size(size)
    box = _centred(frame, min(frame.height, _LONGEST * short), min(frame.width, _LONGEST * short))
    # Resize of torchvision rounds the long side down.
    return box, Size(side * box.height // short, side * box.width // short)


def _centred(frame: Size, height: int, width: int) -> Box:
    return Box((frame.height - height) // 2, (frame.width - width) // 2, height, width)
