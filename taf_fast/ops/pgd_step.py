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
    x: Tensor,
    grad: Tensor,
    clean: Tensor,
    step_size: float | Tensor,
    epsilon: float | Tensor,
    lower: float | Tensor | None = None,
    upper: float | Tensor | None = None,
) -> Tensor:
    """One sign step of the attack, projected onto the ball around the clean clip and the valid range (Eq. 6).

        y = x + step_size * sgn(grad)
        y = clip(clip(y, clean - epsilon, clean + epsilon), lower, upper)

    sgn(0) = sgn(NaN) = 0. A NaN in x or clean stays NaN. Not differentiable: the result is a constant for
    autograd. Computed in float32 (float64 for float64) and rounded once to x's dtype, so in half precision
    the bounds hold up to that rounding. Fastest when x, grad and clean are dense with the same strides.

    Args:
        x: the current clip, [...,C,H,W], any layout; may be empty.
        grad: the gradient to follow; shape, dtype and device of x.
        clean: the centre of the ball; shape, dtype and device of x.
        step_size, epsilon: not negative. A float, or a floating-point tensor [C] on x's device with one
            value a channel; the values of a tensor are not checked.
        lower, upper: the valid range, given the same way; None for no bound.

    Returns:
        A new tensor of x's shape, dtype and memory format.

    Raises:
        ValueError: a shape, dtype, device, length, sign or order does not fit.
    """
    check_floating("x", x)
    if x.dim() < 3:
        raise ValueError(f"x must be [...,C,H,W], got {x.dim()} dimensions")
    check_like("grad", grad, "x", x)
    check_like("clean", clean, "x", x)
    limits = {
        "step_size": step_size,
        "epsilon": epsilon,
        "lower": -math.inf if lower is None else lower,
        "upper": math.inf if upper is None else upper,
    }
    for name, value in limits.items():
        _check_limit(name, value, x)
    both_numbers = not isinstance(limits["lower"], Tensor) and not isinstance(limits["upper"], Tensor)
    if both_numbers and not limits["lower"] <= limits["upper"]:
        raise ValueError(f"lower must not exceed upper, and neither be NaN, got {lower} and {upper}")

    x, grad, clean = x.detach(), grad.detach(), clean.detach()
    if any(isinstance(value, Tensor) for value in limits.values()):
        return _pgd_step(x, grad, clean, _table(limits.values(), x), [])
    return _pgd_step(x, grad, clean, None, [float(value) for value in limits.values()])


def _check_limit(name: str, value: float | Tensor, x: Tensor) -> None:
    if isinstance(value, Tensor):
        check_floating(name, value)
        check_device(name, value, "x", x)
        if value.shape != x.shape[-3:-2]:
            raise ValueError(
                f"{name} must be a number or one value for each of the {x.shape[-3]} channels, "
                f"got shape {list(value.shape)}"
            )
    elif name in ("step_size", "epsilon") and not value >= 0:
        raise ValueError(f"{name} must be a number that is not negative, got {value}")


def _table(limits, x: Tensor) -> Tensor:
    """[4,C]: step, epsilon, lower, upper of every channel."""
    precision = accumulator(x.dtype)
    return torch.stack(
        [
            value.detach().to(precision)
            if isinstance(value, Tensor)
            else x.new_full(x.shape[-3:-2], value, dtype=precision)
            for value in limits
        ]
    )


@triton_op("taf_fast::pgd_step", mutates_args=())
def _pgd_step(
    x: Tensor, grad: Tensor, clean: Tensor, table: Tensor | None, limits: Sequence[float]
) -> Tensor:
    if runs_on_triton(x):
        return pgd_step_triton(x, grad, clean, table, limits)
    return pgd_step_reference(x, grad, clean, table, limits)
