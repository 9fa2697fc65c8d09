"""The frames to take of a clip, int32 ``[T]`` counted from 0, by the official code's rules and rounding.

``sampling`` is that of :class:`~taf_fast.data.views.view.TrainingView`. Clips may be shorter than
``num_segments``: the official rules say which frames are then repeated.
"""

import numpy as np


def train_frames(num_frames: int, num_segments: int, sampling: str, rng: np.random.Generator) -> np.ndarray:
    """One uniformly random frame in each of ``num_segments`` equal segments; "shared" draws one offset for
    all segments, the others one for each."""
    length = num_frames // num_segments
    if length == 0:
        if sampling == "shared":
            return np.sort(rng.integers(num_frames, size=num_segments)).astype(np.int32)
        return np.zeros(num_segments, np.int32)
    places = rng.integers(length, size=1 if sampling == "shared" else num_segments)
    return (np.arange(num_segments) * length + places).astype(np.int32)


def val_frames(num_frames: int, num_segments: int, sampling: str) -> np.ndarray:
    """The centre of each segment, as in the official validation code.

    Clips of at most ``num_segments`` frames repeat frame 0, or with "shared" take draws from a fixed seed.
    """
    if num_frames > num_segments:
        return _centres(num_frames, num_segments)
    if sampling == "shared":
        return _drawn(num_frames, num_segments, seed=0)
    return np.zeros(num_segments, np.int32)


def twice_frames(num_frames: int, num_segments: int, sampling: str) -> tuple[np.ndarray, np.ndarray]:
    """The two clips of the official test code.

    "segments" (``--twice_sample`` of TSM's test_models.py): the centres of the segments, then their first
    frames, for short clips too. "shared" (``--num_clips 2`` of IBM's test.py): the validation frames, then
    the frames one later within the same segments; short clips are drawn from two seeds. "interleaved"
    (``fcn_testing`` of TPN): the centres of twice as many segments, alternating between the clips.
    """
    half = num_frames / num_segments / 2
    if sampling == "interleaved":
        centres = _centres(num_frames, 2 * num_segments)
        return centres[::2].copy(), centres[1::2].copy()
    if sampling == "segments":
        return _centres(num_frames, num_segments), _centres(num_frames, num_segments, -half)
    if num_frames > num_segments:
        return _centres(num_frames, num_segments), _centres(num_frames, num_segments, min(1, half - 1e-4))
    return _drawn(num_frames, num_segments, seed=0), _drawn(num_frames, num_segments, seed=1)


def _centres(num_frames: int, num_segments: int, offset: float = 0.0) -> np.ndarray:
    """Frame indices ``offset`` frames after the centre of each segment."""
    tick = num_frames / num_segments
    # In the official order of operations: any other rounds some of these to the previous frame.
    return (tick / 2 + offset + tick * np.arange(num_segments)).astype(np.int32)


def _drawn(num_frames: int, num_segments: int, seed: int) -> np.ndarray:
    # The legacy generator is the rule, not a source of randomness.
    draws = np.random.RandomState(seed).choice(num_frames, num_segments)
    return np.sort(draws).astype(np.int32)
