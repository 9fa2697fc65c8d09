"""The official sampling and cropping of TSM, and of TAM and TPN where they differ, in plain Python.

``randint(high)`` stands for the random source: an integer in 0..high-1.
"""

import math
from collections.abc import Callable

import numpy as np


def train_indices(num_frames: int, num_segments: int, randint: Callable[[int], int]) -> list[int]:
    average_duration = num_frames // num_segments
    if average_duration > 0:
        return [segment * average_duration + randint(average_duration) for segment in range(num_segments)]
    if num_frames > num_segments:
        return sorted(randint(num_frames - num_segments + 1) for _ in range(num_segments))
    return [0] * num_segments


def val_indices(num_frames: int, num_segments: int) -> list[int]:
    if num_frames > num_segments:
        tick = num_frames / float(num_segments)
        return [int(tick / 2.0 + tick * x) for x in range(num_segments)]
    return [0] * num_segments


def crop_sizes(width: int, height: int, size: int) -> list[tuple[int, int]]:
    """All (height, width) pairs of MultiScaleCrop."""
    sizes = []
    for scale in (1, 0.875, 0.75, 0.66):
        x = int(min(width, height) * scale)
        sizes.append(size if abs(x - size) < 3 else x)
    return [(sizes[i], sizes[j]) for i in range(4) for j in range(4) if abs(i - j) <= 1]


def crop_offsets(width: int, height: int, crop_width: int, crop_height: int) -> list[tuple[int, int]]:
    """The 13 (y, x) positions of MultiScaleCrop with more_fix_crop."""
    w, h = (width - crop_width) // 4, (height - crop_height) // 4
    corners = [(0, 0), (0, 4 * w), (4 * h, 0), (4 * h, 4 * w)]
    edges_and_centre = [(2 * h, 2 * w), (2 * h, 0), (2 * h, 4 * w), (4 * h, 2 * w), (0, 2 * w)]
    quarters = [(h, w), (h, 3 * w), (3 * h, w), (3 * h, 3 * w)]
    return corners + edges_and_centre + quarters


def tam_train_indices(num_frames: int, num_groups: int, randint: Callable[[int], int]) -> list[int]:
    length = num_frames // num_groups
    if length >= 1:
        offset = randint(length)
        return [group * length + offset for group in range(num_groups)]
    return sorted(randint(num_frames) for _ in range(num_groups))


def tam_val_indices(num_frames: int, num_groups: int) -> list[int]:
    if num_frames > num_groups:
        tick = num_frames / float(num_groups)
        return [int(tick / 2.0 + tick * x) for x in range(num_groups)]
    np.random.seed(0)
    return sorted(np.random.choice(num_frames, num_groups).tolist())


def tpn_crop(
    width: int,
    height: int,
    uniform: Callable[[float, float], float],
    random: Callable[[], float],
    randint: Callable[[int], int],
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the pixels that RandomResizedCrop keeps, all inclusive."""
    rows, columns = height, width
    for _ in range(10):
        target = uniform(0.08, 1.0) * rows * columns
        aspect = uniform(3.0 / 4.0, 4.0 / 3.0)
        w = int(round(math.sqrt(target * aspect)))
        h = int(round(math.sqrt(target / aspect)))
        if random() < 0.5:
            w, h = h, w
        # As published: the width is compared with the rows.
        if w <= rows and h <= columns:
            left, top = randint(columns - h + 1), randint(rows - w + 1)
            break
    else:
        w = h = min(rows, columns)
        left, top = (columns - w) // 2, (rows - h) // 2
    # Cropping clips the box to the picture.
    return left, top, min(left + w - 1, columns - 1), min(top + h - 1, rows - 1)
