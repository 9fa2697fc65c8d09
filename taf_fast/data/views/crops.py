"""Crops of a frame, as (y, x, height, width) in its pixels."""

import math

import numpy as np

SCALES = (1, 0.875, 0.75, 0.66)


def multi_scale_crop(
    width: int, height: int, size: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """TSM's random crop at one of 13 fixed positions, with sides of .66 to 1 of the short side.

    The sides differ by one scale at most. A side less than 3 pixels from ``size`` becomes ``size``, but never
    longer than the short side.
    """
    base = min(width, height)
    sides = [max(1, int(base * scale)) for scale in SCALES]
    sides = [min(size, base) if abs(side - size) < 3 else side for side in sides]
    pairs = [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
    h, w = pairs[rng.integers(len(pairs))]
    steps_y, steps_x = FIXED_POSITIONS[rng.integers(len(FIXED_POSITIONS))]
    return steps_y * ((height - h) // 4), steps_x * ((width - w) // 4), h, w


# In quarters of the free space: corners, edge centres and the centre, then the four quarter points.
FIXED_POSITIONS = [(y, x) for y in (0, 2, 4) for x in (0, 2, 4)] + [(y, x) for y in (1, 3) for x in (1, 3)]


def random_resized_crop(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """TPN's random crop: .08 to 1 of the area, sides in a ratio of 3/4 to 4/3, either of them the longer.

    The official code takes the frame's width for its height when it checks that a crop fits and places it,
    and cuts what reaches beyond the frame, so that crops of wide frames are narrow or flat more often than
    drawn. Released weights were trained that way: so does this.
    """
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
            return y, x, min(h, height - y), min(w, width - x)
    side = min(width, height)
    return (height - side) // 2, (width - side) // 2, side, side


def center_crop(width: int, height: int) -> tuple[int, int, int, int]:
    """The crop that 224 pixels of a clip resized to short side 256 show."""
    side = max(1, round(min(width, height) * 224 / 256))
    return (height - side) // 2, (width - side) // 2, side, side


def three_crops(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """The crops of TSM's full-resolution test, for frames of :func:`full_size`: squares of the whole short
    side at the start, in the middle and at the end of the long one.

    They lie, to the nearest pixel, where they do in a clip resized to short side 256: at multiples of a
    quarter of the free space, rounded down, so that TSM and IBM leave up to 3 pixels at the end (TPN 1). Of
    upright videos TSM takes the middle three times, IBM and TPN go from top to bottom; so does this.
    """
    side, long = min(width, height), max(width, height)
    step = (256 * long // side - 256) // 4
    starts = [round(steps * step * side / 256) for steps in (0, 2, 4)]
    return [(0, start, side, side) if width >= height else (start, 0, side, side) for start in starts]


def full_size(size: int) -> int:
    """The side of a delivered square of :func:`three_crops`, in pixels: at the scale, rounded down as TSM
    does, of a centre crop of ``size``."""
    return size * 256 // 224
