"""Convert batches to model inputs, and pixel units to the units of the model's input."""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from taf_fast.models.contract import normalisation_of


def to_model_input(model: nn.Module, clips: Tensor) -> Tensor:
    """Convert clips to the floats [B,T,3,H,W] that ``model`` takes.

    Args:
        model: its ``mean`` and ``std`` [3], for pixels in [0,1], normalise uint8 clips if it has them.
        clips: floats [B,T,3,H,W], which are returned unchanged, or decoded frames uint8 [B,T,H,W,3], which
            are scaled to [0,1] and normalised on their own device, to the dtype of the model's parameters.
            Their memory order is kept, so the result is channels_last.

    Raises:
        ValueError: the clips are no tensor, have another shape or dtype, or contain NaN or infinity.
    """
    if not isinstance(clips, Tensor):
        raise ValueError(
            f"expected clips as a torch.Tensor, got {type(clips).__name__}: torch.as_tensor makes one"
        )
    if clips.dtype == torch.uint8:
        if clips.dim() != 5 or clips.shape[-1] != 3:
            raise ValueError(f"expected uint8 clips of shape [B,T,H,W,3], got {list(clips.shape)}")
        pixels = clips.movedim(-1, -3)
        normalisation = normalisation_of(model)
        wanted = next(
            (p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype()
        )
        dtype = torch.promote_types(wanted, torch.float32)
        if normalisation is None:
            return (pixels.to(dtype) / 255).to(wanted)
        mean, std = (255 * _channels(values, dtype, clips).view(3, 1, 1) for values in normalisation)
        # In two passes, each over a batch larger than any cache.
        return (pixels - mean).div_(std).to(wanted)
    if not clips.is_floating_point() or clips.dim() != 5:
        raise ValueError(
            "expected clips as floats [B,T,3,H,W] or uint8 [B,T,H,W,3], "
            f"got {clips.dtype} {list(clips.shape)}"
        )
    finite = torch.isfinite(clips).flatten(1).all(1)
    if not finite.all():
        bad = (~finite).nonzero().flatten().tolist()
        raise ValueError(f"clips {bad} of the batch contain NaN or infinity, expected finite values")
    return clips


def pixel_units(model: nn.Module, amount: float | Tensor, like: Tensor) -> float | Tensor:
    """Convert a difference ``amount`` in pixels of [0,1], a number or one for each clip [n], to a difference
    of the model's input.

    Returns:
        amount / std per channel [3], or ``amount`` itself for a model without mean and std; per clip
        [n,1,3,1,1], or [n,1,1,1,1].
    """
    if isinstance(amount, Tensor):
        amount = amount.to(like.device, _compute_dtype(like)).view(-1, 1, 1, 1, 1)
    normalisation = normalisation_of(model)
    if normalisation is None:
        return amount
    std = _channels(normalisation.std, _compute_dtype(like), like)
    return amount / (per_channel(std) if isinstance(amount, Tensor) else std)


def pixel_range(model: nn.Module, like: Tensor) -> tuple[float | Tensor, float | Tensor]:
    """Return the model's input at pixel values 0 and 1: per channel [3], or 0.0 and 1.0 for a model without
    mean and std."""
    normalisation = normalisation_of(model)
    if normalisation is None:
        return 0.0, 1.0
    mean, std = (_channels(values, _compute_dtype(like), like) for values in normalisation)
    return -mean / std, (1 - mean) / std


def per_channel(amount: float | Tensor) -> Any:
    """Shape a result of :func:`pixel_units` or :func:`pixel_range` for frames [...,3,H,W]."""
    return amount.view(3, 1, 1) if isinstance(amount, Tensor) and amount.dim() == 1 else amount


def _channels(values, dtype: torch.dtype, like: Tensor) -> Tensor:
    if isinstance(values, Tensor):
        return values.to(like.device, dtype)
    return _numbers_on_device(values, dtype, like.device)


@functools.lru_cache(maxsize=64)
def _numbers_on_device(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A copy to a device waits for it."""
    return torch.tensor(values, dtype=dtype, device=device)


def _compute_dtype(like: Tensor) -> torch.dtype:
    return torch.promote_types(like.dtype, torch.float32)
