"""Gaussian, defocus and zoom blur. All take and return float64 pixels [B,T,3,H,W] in [0,1]."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from taf_fast.corruptions.zoom import zoom

# Keeps a value that is a whole level up to rounding from being truncated to the level below.
_ROUNDING = 1e-9


def gaussian_blur(pixels: Tensor, severity: int) -> Tensor:
    """Blur with a Gaussian of sigma c pixels, cut off at 4 sigma; the edge pixels continue outside the
    picture."""
    sigma = (1, 2, 3, 4, 6)[severity - 1]
    weights = _gaussian(4 * sigma, sigma)
    return _filter(pixels, torch.outer(weights, weights), lambda at, size: at.clamp(0, size - 1))


def defocus_blur(pixels: Tensor, severity: int) -> Tensor:
    """Blur with a disk that has a soft rim; the picture is mirrored outside, without repeating the edge
    pixels."""
    radius, sigma = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    return _filter(pixels, _disk(radius, sigma), _mirrored)


def zoom_blur(pixels: Tensor, severity: int) -> Tensor:
    """Average the picture and its zooms at this severity (the first zoom factor is 1)."""
    end, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[severity - 1]
    # numpy's rounding decides whether 1.11 and 1.16 are among the factors, as in ImageNet-C.
    factors = np.arange(1, end, step).tolist()
    planes = pixels.flatten(0, 1)
    total = planes.clone()
    for factor in factors:
        total += zoom(planes, factor)
    return total.view_as(pixels) / (len(factors) + 1) + _ROUNDING


def _gaussian(radius: int, sigma: float) -> Tensor:
    """Return the weights [2 * radius + 1] of a Gaussian, with sum 1."""
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2)
    return weights / weights.sum()


def _disk(radius: int, sigma: float) -> Tensor:
    """Return a disk, blurred within its square with mirrored borders. For radius 8 and 10 the disk touches
    the border, so its sum is 1.01, as in ImageNet-C."""
    reach, around = (8, 1) if radius <= 8 else (radius, 2)
    grid = torch.arange(-reach, reach + 1)
    disk = (grid[:, None] ** 2 + grid**2 <= radius**2).double()
    disk = F.pad((disk / disk.sum())[None, None], 4 * [around], mode="reflect")
    weights = _gaussian(around, sigma)
    return F.conv2d(disk, torch.outer(weights, weights)[None, None])[0, 0]


def _mirrored(at: Tensor, size: int) -> Tensor:
    """Map positions to ... 2 1 0 1 2 ... size-1 size-2 ..., however far outside they lie."""
    end = size - 1
    return end - (at % max(2 * end, 1) - end).abs()


def _filter(pixels: Tensor, kernel: Tensor, border: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Filter pixels [...,H,W] with a symmetric kernel [2r+1, 2r+1].

    Fourier transforms keep this fast for the largest kernels, which have 2401 weights. ``border`` maps
    positions, given the size of the picture, to the rows or columns that are read there.
    """
    radius = len(kernel) // 2
    rows, columns = (
        border(torch.arange(-radius, size + radius, device=pixels.device), size) for size in pixels.shape[-2:]
    )
    padded = pixels[..., rows, :][..., columns]
    size = padded.shape[-2:]
    spectrum = torch.fft.rfft2(padded).mul_(torch.fft.rfft2(kernel.to(pixels.device), s=size))
    # The first 2r rows and columns have wrapped around.
    return torch.fft.irfft2(spectrum, s=size)[..., 2 * radius :, 2 * radius :] + _ROUNDING
