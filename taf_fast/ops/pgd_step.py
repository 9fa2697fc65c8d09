"""pgd_step: argument checks and registration."""

import math
from collections.abc import Iterable, Sequence
from numbers import Real

import torch
from torch import Tensor

import taf_fast.kernels.pgd_step as kernels
from taf_fast.kernels.common import accumulator, runs_on_triton
from taf_fast.kernels.pgd_step import pgd_step_torch, pgd_step_triton
from taf_fast.ops.checks import check_device, check_floating, check_like
from taf_fast.ops.registration import triton_op


def pgd_step(
    x: Tensor | None,
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

    With x = None the step starts at the clean clip, as the first step of an attack does.

    sgn(0) = sgn(NaN) = 0, so a NaN gradient moves nothing; an infinite gradient moves its element like any
    other. A NaN in x or clean stays NaN. Autograd treats the result as a constant. The op computes in float32
    (float64 for float64) and rounds once to grad's dtype, so in half precision the bounds hold up to that
    rounding. It is fastest when x, grad and clean are dense and share their strides.

    Args:
        x: the current clip, [...,C,H,W], float64, float32, bfloat16 or float16, in any layout; may be empty.
            None starts from clean.
        grad: the gradient to follow, with the shape, dtype and device of x.
        clean: the centre of the ball, with the shape, dtype and device of x, or of grad if x is None.
        step_size, epsilon: in the units of the clip, not negative. Either a float or a floating-point tensor
            on the clip's device: [C] with one value per channel, or as many dimensions as x with one value
            per clip, [B,1,...,1], or per clip and channel, [B,1,...,C,1,1]. The values of a tensor are not
            checked. Values per clip are no matter for the kernel: they run as PyTorch operations.
        lower, upper: the valid range, given in the same way; None sets no bound.

    Returns:
        A new tensor with the shape, dtype and memory format of x, or of grad if x is None.

    Raises:
        ValueError: a shape, dtype or device differs from the above, step_size or epsilon is negative or NaN,
            or lower exceeds upper.
    """
    name, like = ("grad", grad) if x is None else ("x", x)
    check_floating(name, like)
    if like.dim() < 3:
        raise ValueError(f"{name} must be [...,C,H,W], got {like.dim()} dimensions")
    if x is not None:
        check_like("grad", grad, "x", x)
    check_like("clean", clean, name, like)
    limits = {
        "step_size": step_size,
        "epsilon": epsilon,
        "lower": -math.inf if lower is None else lower,
        "upper": math.inf if upper is None else upper,
    }
    for limit, value in limits.items():
        _check_limit(limit, value, name, like)
    both_numbers = not isinstance(limits["lower"], Tensor) and not isinstance(limits["upper"], Tensor)
    if both_numbers and not limits["lower"] <= limits["upper"]:
        raise ValueError(f"lower must not exceed upper, and neither may be NaN, got {lower} and {upper}")

    x = None if x is None else x.detach()
    grad = grad.detach()
    clean = clean.detach()
    if any(isinstance(value, Tensor) for value in limits.values()):
        return _pgd_step(x, grad, clean, _table(limits.values(), like), [])
    return _pgd_step(x, grad, clean, None, [float(value) for value in limits.values()])


def _check_limit(limit: str, value: float | Tensor, name: str, like: Tensor) -> None:
    if isinstance(value, Tensor):
        check_floating(limit, value)
        check_device(limit, value, name, like)
        if value.shape != like.shape[-3:-2] and not _per_clip(value, like):
            raise ValueError(
                f"{limit} must be a number, or hold one value for each clip in {like.dim()} dimensions or "
                f"for each of the {like.shape[-3]} channels, got shape {list(value.shape)}"
            )
    elif not isinstance(value, Real):
        raise ValueError(f"{limit} must be a number or a torch.Tensor, got {type(value).__name__}")
    elif limit in ("step_size", "epsilon") and not value >= 0:
        raise ValueError(f"{limit} must not be negative or NaN, got {value}")


def _per_clip(value: Tensor, like: Tensor) -> bool:
    wide = [like.shape[0], *[1] * (like.dim() - 1)]
    return like.dim() > 3 and list(value.shape) in (wide, [*wide[:-3], like.shape[-3], 1, 1])


def _table(limits: Iterable[float | Tensor], like: Tensor) -> Tensor:
    """Step size, epsilon, lower and upper bound of every channel, [4,C], or, if one is given per clip, of
    every
    clip and channel, [4,B,1,...,C]."""
    precision = accumulator(like.dtype)
    rows = [
        value.detach().to(precision)
        if isinstance(value, Tensor)
        else like.new_full(like.shape[-3:-2], value, dtype=precision)
        for value in limits
    ]
    rows = [row if row.dim() == 1 else row[..., 0, 0] for row in rows]
    return torch.stack(torch.broadcast_tensors(*rows))


@triton_op("pgd_step", kernels)
def _pgd_step(
    x: Tensor | None, grad: Tensor, clean: Tensor, table: Tensor | None, limits: Sequence[float]
) -> Tensor:
    per_clip = table is not None and table.dim() > 2
    if runs_on_triton(grad) and not per_clip:
        return pgd_step_triton(x, grad, clean, table, limits)
    return pgd_step_torch(x, grad, clean, table, limits)
