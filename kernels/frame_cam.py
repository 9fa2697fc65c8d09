"""The class activation map of every frame (Eq. 2), and its backward.

    cam[b,t,q] = sum_c w[b,t,c] F[b,t,c,q]                                   q runs over the h*w positions
    dF[b,t,c,q] = w[b,t,c] g[b,t,q]        dw[b,t,c] = sum_q g[b,t,q] F[b,t,c,q]

Both are bound by memory. The map reads F once and writes 1/C of that; the backward reads F once and writes
dF once. B=16, T=8, C=2048, 7x7 in bf16 is 26 MB per pass.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import accumulator, in_cache, on_device_of, wrap_triton

# (BLOCK_C, BLOCK_P): 2048 elements, 16 per thread at 4 warps, so that two bf16 vector loads are in flight.
# With channels fast (channels_last): long runs of channels, few positions, and 4 programs per 7x7 frame to
# fill the device. With positions fast: all 49 positions of a 7x7 map in one tile, since shorter pieces do not
# coalesce.
CHANNELS_FAST = (128, 16)
POSITIONS_FAST = (32, 64)


@triton.jit
def _frame_cam_kernel(
    features, weights, cam, T, C, P,
    fs_b, fs_t, fs_c, fs_p, ws_b, ws_t, ws_c,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    frame = tl.program_id(0)  # divide in 32 bits: a 64-bit division is a subroutine
    b, t, frame = (frame // T).to(tl.int64), (frame % T).to(tl.int64), frame.to(tl.int64)
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    in_p = p < P
    features += b * fs_b + t * fs_t
    weights += b * ws_b + t * ws_t
    c = tl.arange(0, BLOCK_C)
    row, column = c.to(tl.int64)[:, None] * fs_c, p.to(tl.int64)[None, :] * fs_p
    total = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    for start in range(0, C, BLOCK_C):
        in_c = c < C - start
        w = tl.load(weights + c.to(tl.int64) * ws_c, mask=in_c, other=0.0).to(tl.float32)
        f = tl.load(features + row + column, mask=in_c[:, None] & in_p[None, :], other=0.0).to(tl.float32)
        total += w[:, None] * f
        features += tl.cast(BLOCK_C, tl.int64) * fs_c
        weights += tl.cast(BLOCK_C, tl.int64) * ws_c
    tl.store(cam + frame * P + p, tl.sum(total, axis=0), mask=in_p)


@triton.jit
def _frame_cam_backward_kernel(
    grad, features, weights, d_features, d_weights, T, C, P,
    gs_b, gs_t, gs_p, fs_b, fs_t, fs_c, fs_p, ws_b, ws_t, ws_c, ds_b, ds_t, ds_c, ds_p,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    frame = tl.program_id(0)
    b, t, frame = (frame // T).to(tl.int64), (frame % T).to(tl.int64), frame.to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = c < C
    grad += b * gs_b + t * gs_t
    features += b * fs_b + t * fs_t
    d_features += b * ds_b + t * ds_t
    w = tl.load(weights + b * ws_b + t * ws_t + c.to(tl.int64) * ws_c, mask=in_c, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    for start in range(0, P, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        in_p = p < P
        inside = in_c[:, None] & in_p[None, :]
        row, column = c.to(tl.int64)[:, None], p.to(tl.int64)[None, :]
        g = tl.load(grad + p.to(tl.int64) * gs_p, mask=in_p, other=0.0).to(tl.float32)
        f = tl.load(features + row * fs_c + column * fs_p, mask=inside, other=0.0).to(tl.float32)
        total += g[None, :] * f
        d = (w[:, None] * g[None, :]).to(d_features.dtype.element_ty)
        tl.store(d_features + row * ds_c + column * ds_p, d, mask=inside)
    tl.store(d_weights + frame * C + c, tl.sum(total, axis=1), mask=in_c)


def _blocks(features: Tensor) -> tuple[int, int]:
    channels, positions = features.shape[2:]
    block_c, block_p = CHANNELS_FAST if features.stride(2) < features.stride(3) else POSITIONS_FAST
    return min(block_c, triton.next_power_of_2(channels)), min(block_p, triton.next_power_of_2(positions))


def frame_cam_triton(features: Tensor, weights: Tensor) -> Tensor:
    """Launch the forward: features [B,T,C,h,w] and weights [B,T,C] of any strides -> cam, contiguous float32
    [B,T,h,w]."""
    B, T, C, h, w = features.shape
    cam = torch.empty((B, T, h, w), device=features.device, dtype=torch.float32)
    if cam.numel() == 0:
        return cam
    features = features.flatten(3)  # copies only if the rows of the map cannot be joined, as after a crop
    block_c, block_p = _blocks(features)
    with on_device_of(features):
        wrap_triton(_frame_cam_kernel)[(B * T, triton.cdiv(h * w, block_p))](
            features, weights, cam, T, C, h * w,
            *features.stride(), *weights.stride(),
            BLOCK_C=block_c, BLOCK_P=block_p,
        )  # fmt: skip
    return cam


def frame_cam_backward_triton(grad: Tensor, features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Launch the backward: grad [B,T,h,w] -> dF in the dtype and memory format of features, dw float32
    [B,T,C]."""
    B, T, C, h, w = features.shape
    grad, features = grad.flatten(2), features.flatten(3)
    d_features = torch.empty_like(features)
    d_weights = torch.empty((B, T, C), device=features.device, dtype=torch.float32)
    if features.numel() > 0:
        block_c, block_p = _blocks(features)
        with on_device_of(features):
            wrap_triton(_frame_cam_backward_kernel)[(B * T, triton.cdiv(C, block_c))](
                grad, features, weights, d_features, d_weights, T, C, h * w,
                *grad.stride(), *features.stride(), *weights.stride(), *d_features.stride(),
                BLOCK_C=block_c, BLOCK_P=block_p,
            )  # fmt: skip
    return d_features.unflatten(3, (h, w)), d_weights


def frame_cam_torch(features: Tensor, weights: Tensor) -> Tensor:
    """Do the same as :func:`frame_cam_triton` in plain PyTorch, in float64 too."""
    if not in_cache(features):
        return (features * weights[..., None, None]).sum(2)
    B, T, _, h, w = features.shape
    cam = torch.empty((B, T, h, w), dtype=weights.dtype)
    for clips, part in parts_in_full_precision(features):
        rows = weights[clips].flatten(0, 1).unsqueeze(1)
        torch.bmm(rows, part, out=cam[clips].flatten(2).flatten(0, 1).unsqueeze(1))
    return cam


def frame_cam_backward_torch(grad: Tensor, features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Do the same as :func:`frame_cam_backward_triton` in plain PyTorch, in float64 too."""
    d_features = torch.empty_like(features).copy_(weights[..., None, None] * grad.unsqueeze(2))
    return d_features, weighted_sums(features, grad)


def weighted_sums(features: Tensor, grad: Tensor) -> Tensor:
    """Sum over positions of features [B,T,C,h,w] times grad [B,T,h,w]: [B,T,C] in the dtype of grad."""
    if not in_cache(features):
        return (features * grad.unsqueeze(2)).sum((3, 4))
    sums = torch.empty(features.shape[:3], dtype=grad.dtype)
    for clips, part in parts_in_full_precision(features):
        columns = grad[clips].flatten(2).flatten(0, 1).unsqueeze(2)
        torch.bmm(part, columns, out=sums[clips].flatten(0, 1).unsqueeze(2))
    return sums


def parts_in_full_precision(features: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Some clips of features [B,T,C,h,w] at a time, and their frames [n*T,C,h*w] in the dtype that sums are
    accumulated in: all clips where that is theirs; else one after another, converted in the same memory.

    For matrix products with ``out``, which autocast leaves as they are.
    """
    precision = accumulator(features.dtype)
    if features.dtype == precision:
        yield slice(None), features.flatten(3).flatten(0, 1)
        return
    for clip in range(len(features)):
        if clip == 0:
            converted = torch.empty_like(features[0], dtype=precision)
        yield slice(clip, clip + 1), converted.copy_(features[clip]).flatten(2)
