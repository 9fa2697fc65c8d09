"""Which view of a clip to take, and in which order to take the clips: pure functions of a seed."""

from dataclasses import dataclass

import numpy as np

from taf_fast.data.scanning.manifest import Clip

from .colour import draw_colours
from .crops import center_crop, multi_scale_crop, random_resized_crop, three_crops
from .sampling import train_frames, twice_frames, val_frames
from .view import DEFAULT_VIEW, ONE_VIEW, EvaluationViews, TrainingView


@dataclass(frozen=True)
class ClipPlan:
    """Frames (int32 ``[T]``, 0-based), the crop's top left corner and size, in pixels of the file, the label
    of what is then seen, whether it is mirrored, and maps of its colours (float32 ``[T, 3, 4]``), if any."""

    frames: np.ndarray
    y: int
    x: int
    height: int
    width: int
    label: int
    mirror: bool = False
    colours: np.ndarray | None = None


def plan(
    clip: Clip,
    position: int,
    num_segments: int,
    size: int,
    seed: int,
    epoch: int,
    train: bool,
    view: TrainingView = DEFAULT_VIEW,
) -> ClipPlan:
    """What to take of the clip at ``position`` in the manifest.

    Random for training, drawn from (seed, epoch, position) alone, so that a clip's pixels depend neither on
    the batch it is in nor on the process; without randomness for evaluation. ``size`` is the crop's side in
    pixels after resizing.
    """
    if not train:
        return evaluation_plans(clip, num_segments, view.sampling)[0]
    # Every choice draws after those that other views make too: adding one does not change them.
    rng = np.random.default_rng([seed, epoch, position])
    frames = train_frames(clip.frames, num_segments, view.sampling, rng)
    if view.crop == "multi_scale":
        crop = multi_scale_crop(clip.width, clip.height, size, rng)
    else:
        crop = random_resized_crop(clip.width, clip.height, rng)
    mirror = view.flip and rng.random() < 0.5
    colours = draw_colours(num_segments, rng) if view.colour else None
    return ClipPlan(frames, *crop, view.label(clip.label, mirror), mirror, colours)


def evaluation_plans(
    clip: Clip, num_segments: int, sampling: str, views: EvaluationViews = ONE_VIEW
) -> list[ClipPlan]:
    """What to take of a clip for each of ``views``, without randomness."""
    size = (clip.width, clip.height)
    crops = three_crops(*size) if views.crops == 3 else [center_crop(*size)]
    sampled = (clip.frames, num_segments, sampling)
    clips = twice_frames(*sampled) if views.clips == 2 else [val_frames(*sampled)]
    return [ClipPlan(frames, *crop, clip.label) for frames in clips for crop in crops]


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
