"""Which frames of a clip to take, int32 ``[T]`` from 0: the rules of the official code, rounding included.

``sampling`` is that of :class:`~taf_fast.data.views.view.TrainingView`. Clips may be shorter than their
samples: the official rules say what is then repeated.
"""

import numpy as np


def train_frames(num_frames: int, num_segments: int, sampling: str, rng: np.random.Generator) -> np.ndarray:
    """Uniformly random frames, one in each of ``num_segments`` equal segments, each at a place of its own;
    all at the same if "shared"."""
    length = num_frames // num_segments
    if length == 0:
        if sampling == "shared":
            return np.sort(rng.integers(num_frames, size=num_segments)).astype(np.int32)
        return np.zeros(num_segments, np.int32)
    places = rng.integers(length, size=1 if sampling == "shared" else num_segments)
    return (np.arange(num_segments) * length + places).astype(np.int32)


def val_frames(num_frames: int, num_segments: int, sampling: str) -> np.ndarray:
    """The centre of each segment, as in the official validations.

    Clips of at most ``num_segments`` frames: zeros, or draws from a fixed seed if "shared".
    """
    if num_frames > num_segments:
        return _centres(num_frames, num_segments)
    if sampling == "shared":
        return _drawn(num_frames, num_segments, seed=0)
    return np.zeros(num_segments, np.int32)


def twice_frames(num_frames: int, num_segments: int, sampling: str) -> tuple[np.ndarray, np.ndarray]:
    """The two clips of the official tests.

    "segments" (``--twice_sample`` of TSM's test_models.py): the centres of the segments, then their first
    frames; of a short clip too. "shared" (``--num_clips 2`` of IBM's test.py): the frames of validation,
    then those one frame later, but inside their segments; of a short clip, draws from other seeds.
    "interleaved" (``fcn_testing`` of TPN): the centres of twice as many segments in turns.
    """
    half = num_frames / num_segments / 2
    if sampling == "interleaved":
        return tuple(_centres(num_frames, 2 * num_segments).reshape(-1, 2).T.copy())
    if sampling == "segments":
        return _centres(num_frames, num_segments), _centres(num_frames, num_segments, -half)
    if num_frames > num_segments:
        return _centres(num_frames, num_segments), _centres(num_frames, num_segments, min(1, half - 1e-4))
    return _drawn(num_frames, num_segments, seed=0), _drawn(num_frames, num_segments, seed=1)


def _centres(num_frames: int, num_segments: int, offset: float = 0.0) -> np.ndarray:
    """What is ``offset`` frames behind the centre of each segment."""
    tick = num_frames / num_segments
    # In the official order of operations: others round some of these to the frame before.
    return (tick / 2 + offset + tick * np.arange(num_segments)).astype(np.int32)


def _drawn(num_frames: int, num_segments: int, seed: int) -> np.ndarray:
    # The legacy generator is the rule, not a source of randomness.
    draws = np.random.RandomState(seed).choice(num_frames, num_segments)
    return np.sort(draws).astype(np.int32)
