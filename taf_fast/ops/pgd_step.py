"""Registration and argument checks of pgd_step."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.library import triton_op

from taf_fast.kernels.common import accumulator, runs_on_triton
from taf_fast.kernels.pgd import pgd_step_reference, pgd_step_triton

from .checks import check_device, check_floating, check_like


def pgd_step(
    x: Tensor | None,
    grad: Tensor,
    clean: Tensor,
    step_size: float | Tensor,
    epsilon: float | Tensor,
    lower: float | Tensor | None = None,
    upper: float | Tensor | None = None,
    mean: float | Tensor | None = None,
    std: float | Tensor | None = None,
) -> Tensor:
    """One sign step of the attack, projected onto the ball around the clean clip and the valid range (Eq. 6).

        y = x + step_size * sgn(grad)
        y = clip(clip(y, clean - epsilon, clean + epsilon), lower, upper)

    A first step starts at the clean clip: x = None reads no x. Decoded frames need no normalised copy: a
    uint8 clean stands for (clean / 255 - mean) / std.

    sgn(0) = sgn(NaN) = 0, and an infinite gradient is a step like any other. A NaN in x or clean stays NaN.
    Not differentiable: the result is a constant for autograd. Computed in float32 (float64 for float64) and
    rounded once to grad's dtype, so in half precision the bounds hold up to that rounding. Fastest when x,
    grad and clean are dense with the same strides; a contiguous uint8 clean suits a contiguous grad and one
    with the channels fast.

    Args:
        x: the current clip, [...,C,H,W], any layout; may be empty. None to start from clean.
        grad: the gradient to follow; shape, dtype and device of x.
        clean: the centre of the ball; shape, dtype and device of x (of grad without x), or uint8
            [...,H,W,C] on that device.
        step_size, epsilon: not negative. A float, or a floating-point tensor [C] on x's device with one
            value a channel; the values of a tensor are not checked.
        lower, upper: the valid range, given the same way; None for no bound.
        mean, std: given the same way, in units of pixels in [0,1], with a uint8 clean and only then; std
            positive. 0.0 and 1.0 where the clip is in such pixels.

    Returns:
        A new tensor of the shape, dtype and memory format of x, or of grad without x.

    Raises:
        ValueError: a shape, dtype, device, length, sign or order does not fit.
    """
    name, like = ("grad", grad) if x is None else ("x", x)
    check_floating(name, like)
    if like.dim() < 3:
        raise ValueError(f"{name} must be [...,C,H,W], got {like.dim()} dimensions")
    if x is not None:
        check_like("grad", grad, "x", x)
    decoded = clean.dtype == torch.uint8
    if decoded:
        _check_frames(clean, name, like)
    else:
        check_like("clean", clean, name, like)
    if not (mean is None) == (std is None) == (not decoded):
        raise ValueError("mean and std must both be given with a uint8 clean, and neither with any other")
    limits = {
        "step_size": step_size,
        "epsilon": epsilon,
        "lower": -math.inf if lower is None else lower,
        "upper": math.inf if upper is None else upper,
    }
    if decoded:
        limits |= {"mean": mean, "std": std}
    for limit, value in limits.items():
        _check_limit(limit, value, name, like)
    both_numbers = not isinstance(limits["lower"], Tensor) and not isinstance(limits["upper"], Tensor)
    if both_numbers and not limits["lower"] <= limits["upper"]:
        raise ValueError(f"lower must not exceed upper, and neither be NaN, got {lower} and {upper}")

    x = None if x is None else x.detach()
    if decoded or any(isinstance(value, Tensor) for value in limits.values()):
        return _pgd_step(x, grad.detach(), clean, _table(limits.values(), like), [])
    return _pgd_step(x, grad.detach(), clean, None, [float(value) for value in limits.values()])


def _check_frames(clean: Tensor, name: str, like: Tensor) -> None:
    expected = [*like.shape[:-3], *like.shape[-2:], like.shape[-3]]
    if list(clean.shape) != expected:
        raise ValueError(
            f"a uint8 clean must have the shape of {name} with the channels last, {expected}, "
            f"got {list(clean.shape)}"
        )
    check_device("clean", clean, name, like)


def _check_limit(limit: str, value: float | Tensor, name: str, like: Tensor) -> None:
    if isinstance(value, Tensor):
        check_floating(limit, value)
        check_device(limit, value, name, like)
        if value.shape != like.shape[-3:-2]:
            raise ValueError(
                f"{limit} must be a number or one value for each of the {like.shape[-3]} channels, "
                f"got shape {list(value.shape)}"
            )
    elif limit in ("step_size", "epsilon") and not value >= 0:
        raise ValueError(f"{limit} must be a number that is not negative, got {value}")
    elif limit == "std" and not value > 0:
        raise ValueError(f"std must be a number above zero, got {value}")


def _table(limits, like: Tensor) -> Tensor:
    """[4,C]: step, epsilon, lower, upper of every channel; [6,C] with mean and std."""
    precision = accumulator(like.dtype)
    return torch.stack(
        [
            value.detach().to(precision)
            if isinstance(value, Tensor)
            else like.new_full(like.shape[-3:-2], value, dtype=precision)
            for value in limits
        ]
    )


@triton_op("taf_fast::pgd_step", mutates_args=())
def _pgd_step(
    x: Tensor | None, grad: Tensor, clean: Tensor, table: Tensor | None, limits: Sequence[float]
) -> Tensor:
    if runs_on_triton(grad):
        return pgd_step_triton(x, grad, clean, table, limits)
    return pgd_step_reference(x, grad, clean, table, limits)
