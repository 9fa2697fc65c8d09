"""Blur by a Gaussian, by a lens out of focus, and by zooming."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .zoom import zoom

# What is a whole level but for rounding must not be truncated to the one below.
_ROUNDING = 1e-9


def gaussian_blur(pixels: Tensor, severity: int) -> Tensor:
    """A Gaussian of sigma c pixels, cut off at 4 sigma; outside the picture its edge goes on."""
    sigma = (1, 2, 3, 4, 6)[severity - 1]
    weights = _gaussian(4 * sigma, sigma)
    return _filter(pixels, torch.outer(weights, weights), lambda at, size: at.clamp(0, size - 1))


def defocus_blur(pixels: Tensor, severity: int) -> Tensor:
    """A disk with a soft rim; outside the picture is its mirror image, the edge pixels not repeated."""
    radius, sigma = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    return _filter(pixels, _disk(radius, sigma), _mirrored)


def zoom_blur(pixels: Tensor, severity: int) -> Tensor:
    """The mean of the picture and of what each of the zooms of the severity makes of it (one is by 1)."""
    end, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[severity - 1]
    # Whether 1.11 and 1.16 are among them is a matter of numpy's rounding.
    factors = np.arange(1, end, step).tolist()
    planes = pixels.flatten(0, 1)
    total = planes.clone()
    for factor in factors:
        total += zoom(planes, factor)
    return total.view_as(pixels) / (len(factors) + 1) + _ROUNDING


def _gaussian(radius: int, sigma: float) -> Tensor:
    """[2 * radius + 1], of sum 1."""
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2)
    return weights / weights.sum()


def _disk(radius: int, sigma: float) -> Tensor:
    """Blurred within its square, whose border is a mirror too: of radius 8 and 10, where the disk touches it,
    the sum is 1.01."""
    reach, around = (8, 1) if radius <= 8 else (radius, 2)
    grid = torch.arange(-reach, reach + 1)
    disk = (grid[:, None] ** 2 + grid**2 <= radius**2).double()
    disk = F.pad((disk / disk.sum())[None, None], 4 * [around], mode="reflect")
    weights = _gaussian(around, sigma)
    return F.conv2d(disk, torch.outer(weights, weights)[None, None])[0, 0]


def _mirrored(at: Tensor, size: int) -> Tensor:
    """... 2 1 0 1 2 ... size-1 size-2 ..., as often as it takes."""
    end = size - 1
    return end - (at % max(2 * end, 1) - end).abs()


def _filter(pixels: Tensor, kernel: Tensor, border: Callable[[Tensor, int], Tensor]) -> Tensor:
    """[...,H,W] through a symmetric kernel [2r+1, 2r+1], by Fourier transforms: some have 2401 weights.

    ``border`` says which row or column, of so many, is seen at a position outside the picture.
    """
    radius = len(kernel) // 2
    rows, columns = (
        border(torch.arange(-radius, size + radius, device=pixels.device), size) for size in pixels.shape[-2:]
    )
    padded = pixels[..., rows, :][..., columns]
    size = padded.shape[-2:]
    spectrum = torch.fft.rfft2(padded).mul_(torch.fft.rfft2(kernel.to(pixels.device), s=size))
    # What comes before has wrapped around.
    return torch.fft.irfft2(spectrum, s=size)[..., 2 * radius :, 2 * radius :] + _ROUNDING
