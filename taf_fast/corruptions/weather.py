"""Snow and brightness; pixels are float64 [B,T,3,H,W] in [0,1]."""

import torch
from torch import Tensor

from taf_fast.corruptions.draws import Draws
from taf_fast.corruptions.zoom import zoom

# Per severity: mean and standard deviation of the flakes, their zoom, the threshold below which they vanish,
# reach and sigma of their motion in pixels, and the weight of the original picture against a whitened one.
_SNOW = (
    (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
)


def snow(pixels: Tensor, severity: int, draws: Draws) -> Tensor:
    """Whiten the dark parts of the picture, and add falling flakes and the same flakes turned by 180
    degrees."""
    mean, deviation, size, least, reach, sigma, weight = _SNOW[severity - 1]
    frames, _, height, width = pixels.shape[1:]
    flakes = zoom(mean + deviation * draws.normal(frames, height, width), size)
    levels = (255 * flakes.where(flakes >= least, 0).clamp(0, 1)).floor()
    angles = torch.deg2rad(90 * draws.uniform(frames) - 135)
    falling = (_motion_blur(levels, reach, sigma, angles) / 255).unsqueeze(-3)
    red, green, blue = pixels.unbind(-3)
    grey = (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(-3)
    whitened = weight * pixels + (1 - weight) * torch.maximum(pixels, 1.5 * grey + 0.5)
    return whitened + falling + falling.rot90(2, (-2, -1))


def brightness(pixels: Tensor, severity: int) -> Tensor:
    """Raise V by c in HSV, at most to 1. Hue and saturation stay, so the channels keep their ratio to V, the
    largest channel; black becomes grey."""
    value = pixels.amax(-3, keepdim=True)
    ratio = torch.where(value > 0, pixels / value, 1)
    return ratio * (value + (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]).clamp(max=1)


def _motion_blur(levels: Tensor, reach: int, sigma: float, angles: Tensor) -> Tensor:
    """Blur levels 0..255 [B,T,H,W] along a direction, as ImageMagick does.

    Each value becomes the weighted mean of the values up to 2 * ``reach`` pixels ahead in the direction of
    the frame's angle [B,T] (radians, from right to down). The weights are half of a Gaussian; the edge pixels
    continue outside the picture.
    """
    steps = torch.arange(2 * reach + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (steps / sigma) ** 2)
    weights /= weights.sum()
    frames = levels.flatten(0, 1)
    frame, *places = (torch.arange(size, device=levels.device) for size in frames.shape)
    directions = (angles.sin().view(-1, 1), angles.cos().view(-1, 1))
    blurred = torch.zeros_like(frames)
    for step, weight in enumerate(weights.tolist()):
        rows, columns = (
            (place + (step * direction - 0.5).ceil().long()).clamp(0, len(place) - 1)
            for place, direction in zip(places, directions, strict=True)
        )
        blurred += weight * frames[frame[:, None, None], rows[:, :, None], columns[:, None, :]]
    # ImageMagick rounds to 16 bits; the result is then truncated to 8.
    return (blurred + 0.5 / 257).floor().view_as(levels)
