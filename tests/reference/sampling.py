"""The official sampling and cropping, in plain Python: frames from 0, boxes in pixels.

``randint(high)`` stands for the random source: an integer in 0..high-1. Fractions of frames are floats, added
in the official order, since some of them round to just below a whole frame.
"""

import math
from collections.abc import Callable

import numpy as np


def tsn_train(num_frames: int, num_segments: int, randint: Callable[[int], int]) -> list[int]:
    """TSM, GST and TPN (and TAM except for the draws)."""
    if num_frames < num_segments:
        return [0] * num_segments
    length = num_frames // num_segments
    return [first + randint(length) for first in range(0, length * num_segments, length)]


def tsn_val(num_frames: int, num_segments: int) -> list[int]:
    """TSM, GST and TPN while they train."""
    return [0] * num_segments if num_frames <= num_segments else tsn_test(num_frames, num_segments)


def tsn_test(num_frames: int, num_segments: int) -> list[int]:
    """TSM, GST and TPN in their test programs."""
    frames, tick = [], num_frames / float(num_segments)
    for segment in range(num_segments):
        frames.append(math.floor(tick / 2.0 + tick * segment))
    return frames


def tsm_twice(num_frames: int, num_segments: int) -> list[list[int]]:
    """TSM's test program with --twice_sample."""
    tick = num_frames / float(num_segments)
    starts = [math.floor(tick * segment) for segment in range(num_segments)]
    return [tsn_test(num_frames, num_segments), starts]


def tpn_clips(num_frames: int, num_segments: int) -> list[list[int]]:
    """TPN's fully convolutional test: every other frame of twice the number."""
    frames = tsn_test(num_frames, 2 * num_segments)
    return [[frames[i] for i in range(len(frames)) if i % 2 == clip] for clip in (0, 1)]


def tam_train(num_frames: int, num_segments: int, randint: Callable[[int], int]) -> list[int]:
    """IBM's sampling, with one frame per group."""
    if num_frames < num_segments:
        return sorted(randint(num_frames) for _ in range(num_segments))
    length = num_frames // num_segments
    place = randint(length)
    return [group * length + place for group in range(num_segments)]


def tam_clips(num_frames: int, num_segments: int, num_clips: int) -> list[list[int]]:
    """IBM's validation (1 clip) and test (1 or 2)."""
    clips = []
    for offset in range(num_clips):
        if num_frames > num_segments:
            tick = num_frames / float(num_segments)
            shift = tick / 2.0 - 1e-4 if offset >= tick / 2.0 else offset
            clip = [math.floor(tick / 2.0 + shift + tick * group) for group in range(num_segments)]
        else:
            before = np.random.get_state()
            np.random.seed(offset)
            clip = sorted(np.random.choice(num_frames, num_segments).tolist())
            np.random.set_state(before)
        clips.append(clip)
    return clips


def evaluation_clips(num_frames: int, num_segments: int, sampling: str, num_clips: int) -> list[list[int]]:
    """The clips of a video by the rule of TSM and GST ("segments"), TAM ("shared") or TPN ("interleaved")."""
    if sampling == "shared":
        return tam_clips(num_frames, num_segments, num_clips)
    if num_clips == 1:
        return [tsn_val(num_frames, num_segments)]
    return {"segments": tsm_twice, "interleaved": tpn_clips}[sampling](num_frames, num_segments)


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


def evaluation_squares(
    width: int, height: int, size: int, num_crops: int
) -> tuple[tuple[int, int], list[tuple[int, int, int]]]:
    """(width, height) of the resized frame, and (left, top, side) of the squares in it.

    torchvision's Resize and CenterCrop, or TSM's GroupFullResSample (for upright frames IBM's), in order.
    """
    scale = size * 256 // 224
    wide = (int(scale * width / height), scale)
    scaled = (scale, int(scale * height / width)) if width < height else wide
    if num_crops == 1:
        return scaled, [(int(round((scaled[0] - size) / 2.0)), int(round((scaled[1] - size) / 2.0)), size)]
    step_x, step_y = (scaled[0] - scale) // 4, (scaled[1] - scale) // 4
    return scaled, [(k * step_x, k * step_y, scale) for k in (0, 2, 4)]


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
