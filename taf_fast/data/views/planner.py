"""The view to take of each clip and the order of the clips, as pure functions of a seed."""

from dataclasses import dataclass

import numpy as np

from taf_fast.data.clip import Box, Clip, Size
from taf_fast.data.views.colour import draw_colours
from taf_fast.data.views.crops import center_crop, multi_scale_crop, random_resized_crop, three_crops
from taf_fast.data.views.sampling import train_frames, twice_frames, val_frames
from taf_fast.data.views.view import DEFAULT_VIEW, ONE_VIEW, EvaluationViews, TrainingView


@dataclass(frozen=True)
class ClipPlan:
    """One view of a clip: frames (int32 ``[T]``, counted from 0), the crop in pixels of the shown frame, the
    label of the view, whether it is mirrored, and colour maps (float32 ``[T, 3, 4]``), if any.

    The crop is resized to ``scaled``, or to the size of the delivered square, which is taken from ``corner``
    (y, x) on.
    """

    frames: np.ndarray
    box: Box
    label: int
    mirror: bool = False
    colours: np.ndarray | None = None
    scaled: Size | None = None
    corner: tuple[int, int] = (0, 0)


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
    """The view to take of the clip at ``position`` in the manifest.

    Training views are drawn from (seed, epoch, position) alone, so a clip's pixels depend neither on its
    batch nor on the process. Evaluation views are not random. ``size`` is the crop's side in pixels after
    resizing.
    """
    if not train:
        return evaluation_plans(clip, num_segments, size, view.sampling)[0]
    # Optional choices draw last, so that turning one on does not change the others.
    rng = np.random.default_rng([seed, epoch, position])
    frames = train_frames(clip.frames, num_segments, view.sampling, rng)
    if view.crop == "multi_scale":
        box = multi_scale_crop(clip.size, size, rng)
    else:
        box = random_resized_crop(clip.size, rng)
    mirror = view.flip and rng.random() < 0.5
    colours = draw_colours(num_segments, rng) if view.colour else None
    return ClipPlan(frames, box, view.label(clip.label, mirror), mirror, colours)


def evaluation_plans(
    clip: Clip, num_segments: int, size: int, sampling: str, views: EvaluationViews = ONE_VIEW
) -> list[ClipPlan]:
    """The view to take of a clip for each of ``views``, without randomness; ``size`` is the side of a centre
    crop in pixels."""
    crops = three_crops(clip.size, size) if views.crops == 3 else [center_crop(clip.size, size)]
    clips: tuple[np.ndarray, ...] = (val_frames(clip.frames, num_segments, sampling),)
    if views.clips == 2:
        clips = twice_frames(clip.frames, num_segments, sampling)
    return [
        ClipPlan(frames, crop.box, clip.label, scaled=crop.scaled, corner=crop.corner)
        for frames in clips
        for crop in crops
    ]


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

    Step k of all ranks together takes the k-th run of ``world_size * batch_size`` clips, so ranks are
    disjoint and have equally many steps. ``drop_last`` leaves out the incomplete step at the end; if it is
    the only step, it is kept with equally many clips on every rank. Without ``drop_last`` every clip is in
    one rank's batch, and if fewer clips than ranks are left, the last batch of some ranks is empty.
    """
    order = np.random.default_rng([seed, epoch]).permutation(n) if shuffle else np.arange(n)
    together = world_size * batch_size
    if drop_last:
        order = order[: n - n % together] if n >= together else order[: n - n % world_size]
    return [order[start : start + together][rank::world_size] for start in range(0, len(order), together)]
