"""Noise drawn independently for every value of every channel; pixels are float64 [B,T,3,H,W] in [0,1]."""

from torch import Tensor

from taf_fast.corruptions.draws import Draws


def gaussian_noise(pixels: Tensor, severity: int, draws: Draws) -> Tensor:
    """Return x + n with n ~ N(0, c)."""
    scale = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    return pixels + scale * draws.normal(*pixels.shape[1:])


def impulse_noise(pixels: Tensor, severity: int, draws: Draws) -> Tensor:
    """Set each value to 0 or 1, equally likely, with probability c (salt and pepper)."""
    amount = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    drawn = draws.uniform(*pixels.shape[1:])
    return pixels.masked_fill(drawn < amount, 1).masked_fill(drawn < amount / 2, 0)


def speckle_noise(pixels: Tensor, severity: int, draws: Draws) -> Tensor:
    """Return x + x n with n ~ N(0, c)."""
    scale = (0.15, 0.2, 0.35, 0.45, 0.6)[severity - 1]
    return pixels + pixels * scale * draws.normal(*pixels.shape[1:])
