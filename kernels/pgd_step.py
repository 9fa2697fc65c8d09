"""The projected sign step (Eq. 6).

    y = x + step * sgn(grad),  sgn(0) = sgn(NaN) = 0
    y = clip(clip(y, clean - epsilon, clean + epsilon), lower, upper)

The kernel reads x, grad and clean once and writes y once. It moves 16 bytes per element in fp32 and 8 in
bf16, where eager PyTorch moves 44 in fp32. A first step starts at clean, reads no x and moves 12 and 6. The
memory traffic hides the arithmetic only if indexing is cheap, so the kernel walks memory linearly.
"""

from collections.abc import Iterator, Sequence
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import accumulator, in_cache, on_device_of, wrap_triton

# 16 elements per thread with 4 warps.
BLOCK = 2048
# Elements that the path without a kernel works on at a time.
CACHED = 2**17


@triton.jit
def _pgd_step_kernel(
    x, grad, clean, out, table, step_size, epsilon, lower, upper, numel, stride_c,
    C: tl.constexpr, FROM_CLEAN: tl.constexpr, PER_CHANNEL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0).to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)
    inside = lane < numel - start
    if PER_CHANNEL:
        # (start + lane) // stride_c % C, with the 64-bit division once per program instead of once per lane.
        row = start // stride_c
        position = (start % stride_c).to(tl.int32) + lane
        channel = ((row % C).to(tl.int32) + position // stride_c) % C
        step_size = tl.load(table + channel)
        epsilon = tl.load(table + C + channel)
        lower = tl.load(table + 2 * C + channel)
        upper = tl.load(table + 3 * C + channel)
    else:
        step_size = tl.cast(step_size, tl.float32)
        epsilon = tl.cast(epsilon, tl.float32)
        lower = tl.cast(lower, tl.float32)
        upper = tl.cast(upper, tl.float32)
    g = tl.load(grad + start + lane, mask=inside, other=0.0).to(tl.float32)
    centre = tl.load(clean + start + lane, mask=inside, other=0.0).to(tl.float32)
    y = centre
    if not FROM_CLEAN:
        y = tl.load(x + start + lane, mask=inside, other=0.0).to(tl.float32)
    y += tl.where(g > 0, step_size, tl.where(g < 0, -step_size, 0.0))
    # A NaN pixel stays NaN, as in PyTorch. Without propagation a bound would replace it and look valid.
    y = tl.maximum(y, centre - epsilon, propagate_nan=tl.PropagateNan.ALL)
    y = tl.minimum(y, centre + epsilon, propagate_nan=tl.PropagateNan.ALL)
    y = tl.maximum(y, lower, propagate_nan=tl.PropagateNan.ALL)
    y = tl.minimum(y, upper, propagate_nan=tl.PropagateNan.ALL)
    tl.store(out + start + lane, y.to(out.dtype.element_ty), mask=inside)


def _in_layout_of(out: Tensor, tensor: Tensor) -> Tensor:
    pairs = zip(out.shape, out.stride(), tensor.stride(), strict=True)
    if all(size == 1 or wanted == stride for size, wanted, stride in pairs):
        return tensor
    return torch.empty_like(out).copy_(tensor)


def pgd_step_triton(
    x: Tensor | None, grad: Tensor, clean: Tensor, table: Tensor | None, limits: Sequence[float]
) -> Tensor:
    """One launch if x, grad and clean are dense and share their strides.

    The output has the layout of x, or of grad if x is None, without its holes. Every input with another
    layout is copied into that of the output first.
    """
    out = torch.empty_like(grad if x is None else x)
    if out.numel() == 0:
        return out
    grad = _in_layout_of(out, grad)
    clean = _in_layout_of(out, clean)
    start = grad if x is None else _in_layout_of(out, x)
    step_size, epsilon, lower, upper = limits if table is None else (0.0, 0.0, 0.0, 0.0)
    with on_device_of(out):
        wrap_triton(_pgd_step_kernel)[(triton.cdiv(out.numel(), BLOCK),)](
            start, grad, clean, out, out if table is None else table, step_size, epsilon, lower, upper,
            out.numel(), max(out.stride(-3), 1),
            C=out.shape[-3], FROM_CLEAN=x is None, PER_CHANNEL=table is not None, BLOCK=BLOCK,
        )  # fmt: skip
    return out


def pgd_step_torch(
    x: Tensor | None, grad: Tensor, clean: Tensor, table: Tensor | None, limits: Sequence[float]
) -> Tensor:
    """Do the same as :func:`pgd_step_triton` in plain PyTorch, in float64 and with limits per clip too."""
    values = limits if table is None else table[..., None, None]
    out = torch.empty_like(grad if x is None else x)
    precision = accumulator(out.dtype)
    scratch: list[Tensor] = []
    for part in _parts(out):
        target, centre = out[part], clean[part]
        if table is not None and table.dim() > 2 and part:
            clips = table[:, part[0]]
            values = (clips if isinstance(part[0], slice) else clips.flatten(1))[..., None, None]
        step_size, epsilon, lower, upper = values
        if not scratch:  # the first part is the largest
            count = 1 if x is None else 3
            scratch = [torch.empty_like(target, dtype=precision) for _ in range(count)]
        moved, *bounds = (tensor[: len(target)] for tensor in scratch)
        moved.copy_(grad[part]).sign_()  # torch.sign(NaN) is 0
        if x is None:
            moved.mul_(_smaller(step_size, epsilon)).add_(centre)
        else:
            moved.mul_(_smaller(step_size, torch.finfo(precision).max)).add_(x[part])  # 0 times inf is NaN
            low, high = bounds
            torch.sub(high.copy_(centre), epsilon, out=low)
            moved.clamp_(low, high.add_(epsilon))
        target.copy_(moved.clamp_(lower, upper))
    return out


def _parts(x: Tensor) -> Iterator[tuple[int | slice, ...]]:
    """Indices that together cover x [...,C,H,W]. On a CPU, new memory costs more than the arithmetic: part by
    part, all but the result is used again and stays in the cache."""
    if not in_cache(x) or x.dim() == 3:
        yield ()
        return
    *outer, frames = x.shape[:-3]
    step = max(1, CACHED // max(1, x.shape[-3:].numel()))
    for index in product(*map(range, outer)):
        for start in range(0, frames, step):
            yield *index, slice(start, start + step)


def _smaller(one: float | Tensor, other: float | Tensor) -> float | Tensor:
    if isinstance(one, Tensor):
        return one.minimum(other) if isinstance(other, Tensor) else one.clamp(max=other)
    return min(one, other)
