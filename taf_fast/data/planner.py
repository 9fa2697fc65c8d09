"""Which frames and which crop of a clip to take, and in which order to take the clips: pure functions of a
seed.

Sampling and cropping follow the official TSM code. Something-Something clips are never flipped: left and
right are classes.
"""

from dataclasses import dataclass

import numpy as np

from .manifest import Clip

SCALES = (1, 0.875, 0.75, 0.66)


@dataclass(frozen=True)
class ClipPlan:
    """Frames (int32 ``[T]``, 0-based) and the crop's top left corner and size, in pixels of the file."""

    frames: np.ndarray
    y: int
    x: int
    height: int
    width: int


def train_frames(num_frames: int, num_segments: int, rng: np.random.Generator) -> np.ndarray:
    """One uniformly random frame in each of ``num_segments`` equal segments; zeros for shorter clips. int32
    ``[T]``."""
    length = num_frames // num_segments
    if length == 0:
        return np.zeros(num_segments, np.int32)
    return (np.arange(num_segments) * length + rng.integers(length, size=num_segments)).astype(np.int32)


def val_frames(num_frames: int, num_segments: int) -> np.ndarray:
    """The centre of each segment; zeros for clips of at most ``num_segments`` frames. int32 ``[T]``."""
    if num_frames <= num_segments:
        return np.zeros(num_segments, np.int32)
    tick = num_frames / num_segments
    return (tick / 2 + tick * np.arange(num_segments)).astype(np.int32)


def multi_scale_crop(
    width: int, height: int, size: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A random crop (y, x, height, width) at one of 13 fixed positions, with sides of .66 to 1 of the short
    side.

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


def center_crop(width: int, height: int) -> tuple[int, int, int, int]:
    """The crop (y, x, height, width) that 224 pixels of a clip resized to short side 256 show."""
    side = max(1, round(min(width, height) * 224 / 256))
    return (height - side) // 2, (width - side) // 2, side, side


def plan(
    clip: Clip, position: int, num_segments: int, size: int, seed: int, epoch: int, train: bool
) -> ClipPlan:
    """What to take of the clip at ``position`` in the manifest.

    Random for training, drawn from (seed, epoch, position) alone, so that a clip's pixels depend neither on
    the batch it is in nor on the process; without randomness for evaluation. ``size`` is the crop's side in
    pixels after resizing.
    """
    if not train:
        return ClipPlan(val_frames(clip.frames, num_segments), *center_crop(clip.width, clip.height))
    rng = np.random.default_rng([seed, epoch, position])
    frames = train_frames(clip.frames, num_segments, rng)
    return ClipPlan(frames, *multi_scale_crop(clip.width, clip.height, size, rng))


def epoch_order(
    n: int,
    seed: int,
    epoch: int,
    shuffle: bool,
    rank: int,
    world_size: int,
    batch_size: int,
    drop_last: bool,
) -> list[np.ndarray]:
    """The batches of one rank in one epoch, as indices (int64) into ``n`` clips.

    Step k of all ranks together is the k-th run of ``world_size * batch_size`` clips, so ranks are disjoint
    and have equally many steps. ``drop_last`` leaves out the incomplete step at the end; an only step is
    kept, with equally many clips on every rank. Without it every clip is in the batch of one rank, and when
    fewer clips than ranks are left the last batch of some ranks is empty.
    """
    order = np.random.default_rng([seed, epoch]).permutation(n) if shuffle else np.arange(n)
    together = world_size * batch_size
    if drop_last:
        order = order[: n - n % together] if n >= together else order[: n - n % world_size]
    return [order[start : start + together][rank::world_size] for start in range(0, len(order), together)]
