"""Bilinear resizing with a triangle filter as wide as the shrinking asks for, in float64."""

import numpy as np


def _weights(length: int, size: int) -> np.ndarray:
    """[size, length]: taps outside the picture count for its edge pixel (PIL leaves them out instead)."""
    scale = length / size
    support = max(1.0, scale)
    weights = np.zeros((size, length))
    for i in range(size):
        centre = (i + 0.5) * scale
        for tap in range(int(centre - support) - 2, int(centre + support) + 3):
            weight = max(0.0, 1 - abs(tap + 0.5 - centre) / support)
            weights[i, min(max(tap, 0), length - 1)] += weight
    return weights / weights.sum(1, keepdims=True)


def triangle(frames: np.ndarray, size: int) -> np.ndarray:
    """[F, H, W, C] to float64 [F, size, size, C], not rounded."""
    _, height, width, _ = frames.shape
    return np.einsum("yh,fhwc,xw->fyxc", _weights(height, size), frames, _weights(width, size), optimize=True)
