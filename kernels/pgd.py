"""The projected sign step (Eq. 6).

    y = x + step * sgn(grad),  sgn(0) = sgn(NaN) = 0
    y = clip(clip(y, clean - epsilon, clean + epsilon), lower, upper)

Reads x, grad and clean once and writes y once: 16 bytes an element in fp32, 8 in bf16, where eager PyTorch
moves 44 in fp32. A first step starts at clean and reads no x: 12 and 6. With clean as decoded frames, bytes
with the channels fast, normalised here, a first step in bf16 moves 5. The arithmetic hides behind that only
if indexing is cheap, hence the flat walk over memory.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import accumulator, on_device_of, wrap_triton

# 16 elements a thread at 4 warps.
BLOCK = 2048


@triton.jit
def _pgd_step_kernel(
    x, grad, clean, out, table, step_size, epsilon, lower, upper, numel, stride_c,
    C: tl.constexpr, FROM_CLEAN: tl.constexpr, PER_CHANNEL: tl.constexpr, DECODED: tl.constexpr,
    INTERLEAVED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """DECODED: clean is bytes. INTERLEAVED: it has the channels fast, while out is contiguous."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)
    inside = lane < numel - start
    if PER_CHANNEL:
        # (start + lane) // stride_c, with the 64-bit division done once a program, not once a lane.
        row = start // stride_c
        position = (start % stride_c).to(tl.int32) + lane
        channel = (row % C).to(tl.int32) + position // stride_c
        clip, channel = row // C + channel // C, channel % C
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
    source = start + lane
    if INTERLEAVED:
        # The channels of a picture are walked by programs that run at the same time: the cache serves two
        # of the three.
        source = clip * C * stride_c + (position % stride_c) * C + channel
    centre = tl.load(clean + source, mask=inside, other=0).to(tl.float32)
    if DECODED:
        centre = (centre / 255.0 - tl.load(table + 4 * C + channel)) / tl.load(table + 5 * C + channel)
    y = centre
    if not FROM_CLEAN:
        y = tl.load(x + start + lane, mask=inside, other=0.0).to(tl.float32)
    y += tl.where(g > 0, step_size, tl.where(g < 0, -step_size, 0.0))
    # A NaN pixel stays NaN, as in PyTorch, and does not turn into a valid-looking bound.
    y = tl.maximum(y, centre - epsilon, propagate_nan=tl.PropagateNan.ALL)
    y = tl.minimum(y, centre + epsilon, propagate_nan=tl.PropagateNan.ALL)
    y = tl.maximum(y, lower, propagate_nan=tl.PropagateNan.ALL)
    y = tl.minimum(y, upper, propagate_nan=tl.PropagateNan.ALL)
    tl.store(out + start + lane, y.to(out.dtype.element_ty), mask=inside)


def _in_layout_of(out: Tensor, tensor: Tensor) -> Tensor:
    pairs = zip(out.shape, out.stride(), tensor.stride(), strict=True)
    if all(size == 1 or wanted == stride for size, wanted, stride in pairs):
        return tensor
    return torch.empty_like(out, dtype=tensor.dtype).copy_(tensor)


def pgd_step_triton(
    x: Tensor | None, grad: Tensor, clean: Tensor, table: Tensor | None, limits: Sequence[float]
) -> Tensor:
    """One launch when x, grad and clean are dense and share their strides; each one that differs from the
    output's layout (that of x, or of grad without x; its dense form where it has holes) is copied into it
    first. A uint8 clean, [...,H,W,C], is read in its own order where the output is contiguous."""
    out = torch.empty_like(grad if x is None else x)
    if out.numel() == 0:
        return out
    decoded = clean.dtype == torch.uint8
    interleaved = decoded and out.is_contiguous() and clean.is_contiguous()
    if decoded and not interleaved:
        clean = clean.movedim(-1, -3)
    if not interleaved:
        clean = _in_layout_of(out, clean)
    grad = _in_layout_of(out, grad)
    start = grad if x is None else _in_layout_of(out, x)
    step_size, epsilon, lower, upper = limits if table is None else (0.0, 0.0, 0.0, 0.0)
    with on_device_of(out):
        wrap_triton(_pgd_step_kernel)[(triton.cdiv(out.numel(), BLOCK),)](
            start, grad, clean, out, out if table is None else table, step_size, epsilon, lower, upper,
            out.numel(), max(out.stride(-3), 1),
            C=out.shape[-3], FROM_CLEAN=x is None, PER_CHANNEL=table is not None, DECODED=decoded,
            INTERLEAVED=interleaved, BLOCK=BLOCK,
        )  # fmt: skip
    return out


def pgd_step_reference(
    x: Tensor | None, grad: Tensor, clean: Tensor, table: Tensor | None, limits: Sequence[float]
) -> Tensor:
    step_size, epsilon, lower, upper, *normalisation = limits if table is None else table[..., None, None]
    if normalisation:
        # Reordered while they are bytes: arithmetic between two memory orders is slow.
        clean = torch.empty_like(grad, dtype=clean.dtype).copy_(clean.movedim(-1, -3))
    centre = clean.to(accumulator(grad.dtype))
    if normalisation:
        mean, std = normalisation
        centre = (centre / 255 - mean) / std
    move = grad.to(centre.dtype).sign() * step_size  # torch.sign(NaN) is 0
    y = move + centre if x is None else x + move  # the first operand gives the result its layout
    y = y.clamp(centre - epsilon, centre + epsilon).clamp(lower, upper)
    return y.to(grad.dtype)
