"""TPN's colour augmentation in float64, step by step on pictures in BGR order, never clipped.

``uniform(low, high)``, ``normal()`` and ``coin()`` (True with probability .5) stand for the random source.
"""

from collections.abc import Callable

import numpy as np

RGB_TO_YIQ = [[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]]
YIQ_TO_RGB = [[1, 0.956, 0.621], [1, -0.272, -0.647], [1, -1.107, 1.705]]
EIGENVALUES = [55.46, 4.794, 1.148]
EIGENVECTORS = [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]


def jitter(frames: np.ndarray, uniform: Callable, normal: Callable, coin: Callable) -> np.ndarray:
    """RGB [T, H, W, 3] on 0..255 to float64 of the same shape."""
    delta, contrast, saturation = uniform(-32, 32), uniform(0.6, 1.4), uniform(0.6, 1.4)
    angle = uniform(-18, 18) * np.pi

    def change_contrast(image):
        return image * contrast

    def change_saturation(image):
        luma = 0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2]
        return image * saturation + luma[..., None] * (1 - saturation)

    def change_hue(image):
        y, i, q = (sum(w * image[..., c] for c, w in enumerate(row)) for row in RGB_TO_YIQ)
        turned = y, np.cos(angle) * i - np.sin(angle) * q, np.sin(angle) * i + np.cos(angle) * q
        return np.stack([sum(w * v for w, v in zip(row, turned, strict=True)) for row in YIQ_TO_RGB], -1)

    pictures = []
    for frame in frames.astype(np.float64):
        image = frame[..., ::-1]  # BGR
        if coin():
            image = image + delta
        if coin():
            steps = [change_contrast, change_saturation, change_hue]
        else:
            steps = [change_saturation, change_hue, change_contrast]
        for step in steps:
            if coin():
                image = step(image)
        pictures.append(image[..., ::-1])
    amounts = [normal() * value for value in EIGENVALUES]
    noise = [sum(v * a for v, a in zip(row, amounts, strict=True)) for row in EIGENVECTORS]
    return np.stack(pictures) + noise
