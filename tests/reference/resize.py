"""Bilinear resizing in float64, with a triangle filter that widens with the reduction."""

import numpy as np


def _weights(length: int, size: int, repeat_edges: bool) -> np.ndarray:
    """[size, length]: taps outside the picture count for its edge pixel, or are left out."""
    scale = length / size
    support = max(1.0, scale)
    weights = np.zeros((size, length))
    for i in range(size):
        centre = (i + 0.5) * scale
        for tap in range(int(centre - support) - 2, int(centre + support) + 3):
            weight = max(0.0, 1 - abs(tap + 0.5 - centre) / support)
            inside = min(max(tap, 0), length - 1)
            if repeat_edges or tap == inside:
                weights[i, inside] += weight
    return weights / weights.sum(1, keepdims=True)


def triangle(frames: np.ndarray, size: tuple[int, int], repeat_edges: bool) -> np.ndarray:
    """[F, H, W, C] to float64 [F, *size, C], not rounded; DALI repeats edges, PIL and PyTorch do not."""
    weights = [_weights(*lengths, repeat_edges) for lengths in zip(frames.shape[1:3], size, strict=True)]
    return np.einsum("yh,fhwc,xw->fyxc", weights[0], frames, weights[1], optimize=True)
