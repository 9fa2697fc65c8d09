"""ImageNet-C's corruptions in float64, by scipy and loops: uint8 [T,H,W,3] to values on 0..255.

These are not truncated. The draws are given: normal ones of mean 0 and deviation 1, uniform ones in [0,1).
"""

import colorsys
import math

import numpy as np
from scipy import ndimage

FACTORS = {
    1: [1 + 0.01 * i for i in range(12)],
    2: [1 + 0.01 * i for i in range(16)],
    3: [1 + 0.02 * i for i in range(11)],
    4: [1 + 0.02 * i for i in range(13)],
    5: [1 + 0.03 * i for i in range(11)],
}


def gaussian_noise(clip, severity, normal):
    return _levels(clip / 255 + {1: 0.08, 2: 0.12, 3: 0.18, 4: 0.26, 5: 0.38}[severity] * normal)


def speckle_noise(clip, severity, normal):
    return _levels(clip / 255 * (1 + {1: 0.15, 2: 0.2, 3: 0.35, 4: 0.45, 5: 0.6}[severity] * normal))


def impulse_noise(clip, severity, uniform):
    amount = {1: 0.03, 2: 0.06, 3: 0.09, 4: 0.17, 5: 0.27}[severity]
    return np.select([uniform < amount / 2, uniform < amount], [0.0, 255.0], clip.astype(float))


def gaussian_blur(clip, severity):
    sigma = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6}[severity]
    return _planes(lambda plane: ndimage.gaussian_filter(plane, sigma, mode="nearest", truncate=4), clip)


def defocus_blur(clip, severity):
    radius, sigma = {1: (3, 0.1), 2: (4, 0.5), 3: (6, 0.5), 4: (8, 0.5), 5: (10, 0.5)}[severity]
    side = range(-10, 11) if radius == 10 else range(-8, 9)
    disk = np.array([[1.0 if math.hypot(x, y) <= radius else 0.0 for x in side] for y in side])
    taps = range(-2, 3) if radius == 10 else range(-1, 2)
    bell = np.array([math.exp(-(x**2) / (2 * sigma**2)) for x in taps])
    soft = disk / disk.sum()
    for axis in (0, 1):
        soft = ndimage.correlate1d(soft, bell / bell.sum(), axis, mode="mirror")
    return _planes(lambda plane: ndimage.correlate(plane, soft, mode="mirror"), clip)


def zoom_blur(clip, severity):
    pictures = [clip / 255] + [_planes(lambda p, f=f: zoom(p, f), clip) / 255 for f in FACTORS[severity]]
    return _levels(np.mean(pictures, axis=0))


def brightness(clip, severity):
    more = severity / 10
    out = np.empty(clip.shape)
    for place in np.ndindex(clip.shape[:-1]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(clip[place] / 255))
        out[place] = colorsys.hsv_to_rgb(hue, saturation, min(value + more, 1))
    return _levels(out)


def snow(clip, severity, normal, uniform):
    mean, deviation, factor, least, reach, sigma, weight = {
        1: (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        2: (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        3: (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        4: (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        5: (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    }[severity]
    frames = []
    for frame, drawn, share in zip(clip / 255, normal, uniform, strict=True):
        layer = zoom(mean + deviation * drawn, factor)
        layer[layer < least] = 0
        layer = np.floor(255 * layer.clip(0, 1))
        layer = motion_blur(layer, reach, sigma, -135 + 90 * share)[..., None] / 255
        grey = frame @ [[0.299], [0.587], [0.114]]
        lit = weight * frame + (1 - weight) * np.maximum(frame, 1.5 * grey + 0.5)
        frames.append(lit + layer + layer[::-1, ::-1])
    return _levels(np.stack(frames))


def motion_blur(layer, reach, sigma, degrees):
    """Levels [H,W] to whole levels."""
    weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(2 * reach + 1)]
    angle = math.radians(degrees)
    height, width = layer.shape
    out = np.zeros(layer.shape)
    for (y, x), _ in np.ndenumerate(layer):
        for i, weight in enumerate(weights):
            row = y + math.ceil(i * math.sin(angle) - 0.5)
            column = x + math.ceil(i * math.cos(angle) - 0.5)
            out[y, x] += weight * layer[min(max(row, 0), height - 1), min(max(column, 0), width - 1)]
    sixteen_bits = np.floor(257 * out / sum(weights) + 0.5)
    return np.floor(sixteen_bits / 257)


def zoom(plane, factor):
    """[H,W] to the same size."""
    for axis, size in enumerate(plane.shape):
        shown = math.ceil(round(size / factor, 9))
        enlarged = round(round(shown * factor, 9))
        first, trim = (size - shown) // 2, (enlarged - size) // 2
        at = np.linspace(0, shown - 1, enlarged)[trim : trim + size]

        def line(values, first=first, shown=shown, at=at):
            return np.interp(at, np.arange(shown), values[first : first + shown])

        plane = np.apply_along_axis(line, axis, plane)
    return plane


def _levels(pixels):
    return 255 * pixels.clip(0, 1)


def _planes(function, clip):
    """A function of [H,W] in [0,1] on every channel of every frame."""
    out = [[function(plane) for plane in frame] for frame in np.moveaxis(clip, -1, 1) / 255]
    return _levels(np.moveaxis(np.array(out), 1, -1))
