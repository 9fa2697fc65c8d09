"""The temporal shift of TSM: some channels come from the next frame, as many from the previous one.

    out[t, :fold] = x[t+1, :fold]        out[t, fold:2*fold] = x[t-1, fold:2*fold]

with fold = C // fold_div, the other channels copied and zeros beyond the ends of the clip. The backward is
the same with the two directions swapped. Every element is read and written once, in one launch; slicing takes
five.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import on_device_of, wrap_triton

# Elements per tile: 16 per thread at 4 warps.
TILE = 2048
# Longest run along the fast axis: 64 channels of bf16 are 128 bytes; 1024 positions keep the rows of a small
# map in one tile.
MAX_BLOCK_C, MAX_BLOCK_P = 64, 1024


@triton.jit
def _temporal_shift_kernel(
    x, out, T, C, P, xs_n, xs_c, xs_p, os_n, os_c, os_p,
    FOLD: tl.constexpr, REVERSE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) % T
    frame = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    # A block of channels stays within one group, so that a tile has one source frame. Because FOLD is
    # constant, the compiler sees that its loads are aligned vectors.
    BLOCKS: tl.constexpr = (FOLD + BLOCK_C - 1) // BLOCK_C
    group = tl.minimum(block // BLOCKS, 2) if FOLD > 0 else 2
    c = group * FOLD + (block - group * BLOCKS) * BLOCK_C + tl.arange(0, BLOCK_C)
    end = tl.where(group == 2, C, (group + 1) * FOLD)
    ahead = tl.where(group == 0, 1, tl.where(group == 1, -1, 0))
    if REVERSE:
        ahead = -ahead
    source_t = t + ahead
    p = tl.program_id(2) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (c < end)[:, None] & (p < P)[None, :]
    row, column = c.to(tl.int64)[:, None], p.to(tl.int64)[None, :]
    source = x + (frame + ahead) * xs_n + row * xs_c + column * xs_p
    value = tl.load(source, mask=inside & (source_t >= 0) & (source_t < T), other=0.0)
    tl.store(out + frame * os_n + row * os_c + column * os_p, value, mask=inside)


def temporal_shift_triton(x: Tensor, num_segments: int, fold_div: int, reverse: bool) -> Tensor:
    """Launch the shift: x [B*T,C,h,w] of any strides and dtype -> the same shape and dtype, dense, in x's
    memory format if it has one. ``reverse`` swaps the two directions."""
    N, C, h, w = x.shape
    x = x.flatten(2)  # copies only if the rows of the map cannot be joined, as after a crop
    out = torch.empty_like(x)
    if out.numel() > 0:
        fold = C // fold_div
        if x.stride(1) < x.stride(2):
            block_c = min(MAX_BLOCK_C, triton.next_power_of_2(max(fold, 8)))
            block_p = min(TILE // block_c, triton.next_power_of_2(h * w))
        else:
            block_p = min(MAX_BLOCK_P, triton.next_power_of_2(h * w))
            block_c = min(TILE // block_p, triton.next_power_of_2(max(fold, 1)))
        blocks_c = 2 * triton.cdiv(fold, block_c) + triton.cdiv(C - 2 * fold, block_c)
        with on_device_of(x):
            wrap_triton(_temporal_shift_kernel)[(N, blocks_c, triton.cdiv(h * w, block_p))](
                x, out, num_segments, C, h * w, *x.stride(), *out.stride(),
                FOLD=fold, REVERSE=reverse, BLOCK_C=block_c, BLOCK_P=block_p,
            )  # fmt: skip
    return out.unflatten(2, (h, w))


def temporal_shift_torch(x: Tensor, num_segments: int, fold_div: int, reverse: bool) -> Tensor:
    """Do the same as :func:`temporal_shift_triton` in plain PyTorch."""
    out = torch.empty_like(x)
    fold = x.shape[1] // fold_div
    source, target = (y.unflatten(0, (x.shape[0] // num_segments, num_segments)) for y in (x, out))
    ahead, back = slice(0, fold), slice(fold, 2 * fold)
    if reverse:
        ahead, back = back, ahead
    target[:, :-1, ahead] = source[:, 1:, ahead]
    target[:, -1, ahead] = 0
    target[:, 1:, back] = source[:, :-1, back]
    target[:, 0, back] = 0
    target[:, :, 2 * fold :] = source[:, :, 2 * fold :]
    return out
