"""The official TSM sampling and cropping, written out in plain Python.

``randint(high)`` stands for the random source: an integer in 0..high-1.
"""

from collections.abc import Callable


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
