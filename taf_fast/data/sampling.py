"""Which frames of a clip to take, int32 ``[T]`` from 0.

``sampling`` is that of :class:`~taf_fast.data.view.TrainingView`. Clips may be shorter than their
samples: the official rules say what is then repeated.
"""

import numpy as np


def train_frames(num_frames: int, num_segments: int, sampling: str, rng: np.random.Generator) -> np.ndarray:
    """Uniformly random frames, one in each of ``num_segments`` equal segments: each at a place of its own
    ("segments") or all at the same ("shared")."""
    length = num_frames // num_segments
    if length == 0:
        if sampling == "shared":
            return np.sort(rng.integers(num_frames, size=num_segments)).astype(np.int32)
        return np.zeros(num_segments, np.int32)
    places = rng.integers(length, size=1 if sampling == "shared" else num_segments)
    return (np.arange(num_segments) * length + places).astype(np.int32)


def val_frames(num_frames: int, num_segments: int, sampling: str) -> np.ndarray:
    """The centre of each segment.

    Clips of at most ``num_segments`` frames: zeros ("segments") or draws of the official code's fixed seed,
    in order ("shared").
    """
    if num_frames <= num_segments:
        if sampling == "shared":
            # The legacy generator is the rule, not a source of randomness.
            return np.sort(np.random.RandomState(0).choice(num_frames, num_segments)).astype(np.int32)
        return np.zeros(num_segments, np.int32)
    tick = num_frames / num_segments
    return (tick / 2 + tick * np.arange(num_segments)).astype(np.int32)
