"""From what a batch holds to what a model takes, and from pixel units to the model's."""

import torch
from torch import Tensor, nn


def to_model_input(model: nn.Module, clips: Tensor) -> Tensor:
    """Clips as ``model`` takes them: [B,T,3,H,W] floats.

    Args:
        model: its ``mean`` and ``std`` [3] (pixels in [0,1]) are used when it has them.
        clips: either that already, and returned as it is, or uint8 [B,T,H,W,3] frames from a
            decoder, which are scaled to [0,1] and normalised on their own device. Their memory
            order is kept, so the frames come out channels_last.

    Raises:
        ValueError: neither of the two, or NaN or infinity among the values.
    """
    if clips.dtype == torch.uint8:
        if clips.dim() != 5 or clips.shape[-1] != 3:
            raise ValueError(f"expected uint8 clips of shape [B,T,H,W,3], got {list(clips.shape)}")
        pixels = clips.movedim(-1, -3)
        if not _is_normalised(model):
            return pixels / 255
        dtype = torch.get_default_dtype()
        mean, std = (255 * _channels(v, dtype, clips).view(3, 1, 1) for v in (model.mean, model.std))
        return (pixels - mean).div_(std)  # two passes over a batch that no cache holds
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


def pixel_units(model: nn.Module, amount: float, like: Tensor) -> float | Tensor:
    """A difference of ``amount`` in pixels of range [0,1], as a difference of the model's input:
    amount / std per channel [3], or the number itself for a model without mean and std."""
    if not _is_normalised(model):
        return amount
    return amount / _channels(model.std, _compute_dtype(like), like)


def pixel_range(model: nn.Module, like: Tensor) -> tuple[float | Tensor, float | Tensor]:
    """The model's input at pixel values 0 and 1: scalars, or per channel [3]."""
    if not _is_normalised(model):
        return 0.0, 1.0
    mean, std = (_channels(v, _compute_dtype(like), like) for v in (model.mean, model.std))
    return -mean / std, (1 - mean) / std


def per_channel(amount: float | Tensor) -> float | Tensor:
    """What :func:`pixel_units` or :func:`pixel_range` gave, to compute with frames [...,3,H,W]."""
    return amount.view(3, 1, 1) if isinstance(amount, Tensor) else amount


def _channels(values, dtype: torch.dtype, like: Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=dtype, device=like.device)


def _is_normalised(model: nn.Module) -> bool:
    return getattr(model, "mean", None) is not None and getattr(model, "std", None) is not None


def _compute_dtype(like: Tensor) -> torch.dtype:
    return torch.promote_types(like.dtype, torch.float32)
