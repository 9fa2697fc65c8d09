"""The normalised map, its frame scores, the loss over the lowest frames (Eqs. 3 to 5), and the backward.

Per clip, over all frames and positions, with m the minimum, M the maximum, P = h*w:

    D = M  or  M - m,  |D| at least eps with its sign kept            r = (cam - m) / D
    scores_t = sum_q r_t(q)     S = the N lowest scores     loss = (1/N) sum_S scores_t

    dA = [ gs_t - P sum(gs) delta_argmin - (sum_t gs_t scores_t) d ] / D
    d = delta_argmax  or  delta_argmax - delta_argmin,  0 where eps applies

where gs is the gradient with respect to the scores. A clip is small (8x7x7 floats are 1.6 KB), so one program
handles a whole clip: forward and backward take one launch each, and the second pass over the map is cached.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import accumulator, on_device_of, wrap_triton

# Elements per tile: 16 per thread at 4 warps.
TILE = 2048
# The ranking compares all pairs of frames in registers; at 64 frames the compiler spills.
MAX_FRAMES = 32


@triton.jit
def tile_statistics(
    cam, T, P, cs_t, cs_p, eps, USE_RANGE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_P: tl.constexpr
):
    """Return m, D, whether eps applies, the flat positions of the first minimum and maximum, and the scores
    [BLOCK_T]."""
    t = tl.arange(0, BLOCK_T)
    nowhere = T * P
    low = tl.full((BLOCK_T, BLOCK_P), float("inf"), tl.float32)
    high = tl.full((BLOCK_T, BLOCK_P), float("-inf"), tl.float32)
    low_at = tl.zeros((BLOCK_T, BLOCK_P), tl.int32) + nowhere
    high_at = tl.zeros((BLOCK_T, BLOCK_P), tl.int32) + nowhere
    nans = tl.zeros((BLOCK_T, BLOCK_P), tl.int32)
    for start in range(0, P, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        inside = (t < T)[:, None] & (p < P)[None, :]
        offsets = t.to(tl.int64)[:, None] * cs_t + p.to(tl.int64)[None, :] * cs_p
        a = tl.load(cam + offsets, mask=inside, other=0.0).to(tl.float32)
        at = t[:, None] * P + p[None, :]
        lower = inside & (a < low)
        higher = inside & (a > high)
        low, low_at = tl.where(lower, a, low), tl.where(lower, at, low_at)
        high, high_at = tl.where(higher, a, high), tl.where(higher, at, high_at)
        nans |= (inside & (a != a)).to(tl.int32)
    minimum, maximum = tl.min(low), tl.max(high)
    argmin = tl.min(tl.where(low == minimum, low_at, nowhere))
    argmax = tl.min(tl.where(high == maximum, high_at, nowhere))
    # The comparisons skip NaN, but torch's min and max return it. Through D it reaches every score.
    maximum = tl.where(tl.max(nans) > 0, float("nan"), maximum)

    eps = tl.cast(eps, tl.float32)
    denominator = maximum - minimum if USE_RANGE else maximum
    floored = tl.abs(denominator) < eps
    denominator = tl.where(floored, tl.where(denominator < 0, -eps, eps), denominator)

    total = tl.zeros((BLOCK_T, BLOCK_P), tl.float32)
    for start in range(0, P, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        inside = (t < T)[:, None] & (p < P)[None, :]
        offsets = t.to(tl.int64)[:, None] * cs_t + p.to(tl.int64)[None, :] * cs_p
        a = tl.load(cam + offsets, mask=inside, other=0.0).to(tl.float32)
        total += tl.where(inside, a - minimum, 0.0)
    scores = tl.sum(total, axis=1) / denominator
    return minimum, denominator, floored, argmin, argmax, scores


@triton.jit
def order_of_frames(score, T, BLOCK_T: tl.constexpr):
    """Rank the frames by ascending score: int32 [BLOCK_T], the lower index first on ties, NaN last."""
    t = tl.arange(0, BLOCK_T)
    here, there = score[:, None], score[None, :]
    nan_here, nan_there = here != here, there != there
    same = (there == here) | (nan_here & nan_there)
    before = (there < here) | (nan_here & (there == there)) | (same & (t[None, :] < t[:, None]))
    return tl.sum((before & (t < T)[None, :]).to(tl.int32), axis=1)


@triton.jit
def _cam_loss_kernel(
    cam, loss, scores, frames, T, P, N, cs_b, cs_t, cs_p, eps,
    USE_RANGE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    _, _, _, _, _, score = tile_statistics(cam + b * cs_b, T, P, cs_t, cs_p, eps, USE_RANGE, BLOCK_T, BLOCK_P)
    t = tl.arange(0, BLOCK_T)
    rank = order_of_frames(score, T, BLOCK_T)
    chosen = (t < T) & (rank < N)
    tl.store(scores + b * T + t, score, mask=t < T)
    tl.store(frames + b * N + rank, t.to(tl.int64), mask=chosen)
    tl.store(loss + b, tl.sum(tl.where(chosen, score, 0.0)) / N)


@triton.jit
def _cam_loss_backward_kernel(
    grad_scores, cam, d_cam, T, P, gs_b, gs_t, cs_b, cs_t, cs_p, ds_b, ds_t, ds_p, eps,
    USE_RANGE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    _, denominator, floored, argmin, argmax, scores = tile_statistics(
        cam + b * cs_b, T, P, cs_t, cs_p, eps, USE_RANGE, BLOCK_T, BLOCK_P
    )
    t = tl.arange(0, BLOCK_T)
    gs = tl.load(grad_scores + b * gs_b + t * gs_t, mask=t < T, other=0.0).to(tl.float32)
    through_min = P * tl.sum(gs)
    through_denominator = tl.where(floored, 0.0, tl.sum(tl.where(t < T, gs * scores, 0.0)))
    for start in range(0, P, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        at = t[:, None] * P + p[None, :]
        grad = gs[:, None] - tl.where(at == argmin, through_min, 0.0)
        grad -= tl.where(at == argmax, through_denominator, 0.0)
        if USE_RANGE:
            grad += tl.where(at == argmin, through_denominator, 0.0)
        grad = (grad / denominator).to(d_cam.dtype.element_ty)
        offsets = b * ds_b + t.to(tl.int64)[:, None] * ds_t + p.to(tl.int64)[None, :] * ds_p
        tl.store(d_cam + offsets, grad, mask=(t < T)[:, None] & (p < P)[None, :])


def clip_blocks(T: int, P: int) -> dict[str, int]:
    """Return the block sizes of a program that handles a clip of T frames with P positions."""
    block_t = triton.next_power_of_2(T)
    return {"BLOCK_T": block_t, "BLOCK_P": min(TILE // block_t, triton.next_power_of_2(P))}


def cam_loss_triton(
    cam: Tensor, num_frames: int, use_range: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the forward: cam [B,T,h,w] of any strides with T <= MAX_FRAMES -> float32 loss [B] and scores
    [B,T], int64 frames [B,num_frames]."""
    B, T, h, w = cam.shape
    loss = torch.empty(B, device=cam.device, dtype=torch.float32)
    scores = torch.empty((B, T), device=cam.device, dtype=torch.float32)
    frames = torch.empty((B, num_frames), device=cam.device, dtype=torch.int64)
    if B > 0:
        cam = cam.flatten(2)
        with on_device_of(cam):
            wrap_triton(_cam_loss_kernel)[(B,)](
                cam, loss, scores, frames, T, h * w, num_frames, *cam.stride(), eps,
                USE_RANGE=use_range, **clip_blocks(T, h * w),
            )  # fmt: skip
    return loss, scores, frames


def cam_loss_backward_triton(grad_scores: Tensor, cam: Tensor, use_range: bool, eps: float) -> Tensor:
    """Launch the backward: grad_scores [B,T], cam [B,T,h,w] -> dL/dcam, in the dtype of cam."""
    B, T, h, w = cam.shape
    cam = cam.flatten(2)
    d_cam = torch.empty_like(cam)
    if B > 0:
        with on_device_of(cam):
            wrap_triton(_cam_loss_backward_kernel)[(B,)](
                grad_scores, cam, d_cam, T, h * w,
                *grad_scores.stride(), *cam.stride(), *d_cam.stride(), eps,
                USE_RANGE=use_range, **clip_blocks(T, h * w),
            )  # fmt: skip
    return d_cam.unflatten(2, (h, w))


class ClipStatistics(NamedTuple):
    at_min: Tensor  # [B,T,P], 1 at the first minimum of the clip, 0 elsewhere
    slope: Tensor  # [B,T,P], dD/dcam, 0 where eps applies
    denominator: Tensor  # [B,1]
    scores: Tensor  # [B,T]


def _extremes(cam: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum and maximum [B,1] of the clips of cam [B,T,P]; their gradient goes to the first position."""
    flat = cam.flatten(1)
    if torch.is_grad_enabled():
        return flat.min(1, keepdim=True)[0], flat.max(1, keepdim=True)[0]
    return flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)  # faster, but equal values would share it


def _denominator(minimum: Tensor, maximum: Tensor, use_range: bool, eps: float) -> Tensor:
    """D [B,1], without gradient where eps applies."""
    if use_range:
        return (maximum - minimum).clamp(min=eps)
    return torch.where(maximum < 0, maximum.clamp(max=-eps), maximum.clamp(min=eps))


def _scores(cam: Tensor, minimum: Tensor, denominator: Tensor) -> Tensor:
    """Normalise cam [B,T,P] and sum it over positions: [B,T]."""
    return (cam - minimum[..., None]).sum(2) / denominator


def clip_statistics(cam: Tensor, use_range: bool, eps: float) -> ClipStatistics:
    """Compute what both passes share in plain PyTorch, differentiable any number of times.

    cam is [B,T,h,w] with P = h*w; the results are float32, or float64 for float64.
    """
    cam = cam.to(accumulator(cam.dtype)).flatten(2)
    minimum, maximum = _extremes(cam)
    denominator = _denominator(minimum, maximum, use_range, eps)
    scores = _scores(cam, minimum, denominator)
    flat = cam.detach().flatten(1)
    position = torch.arange(flat.shape[1], device=cam.device)
    at_min, at_max = ((position == at[:, None]).to(cam.dtype) for at in (flat.argmin(1), flat.argmax(1)))
    raw = maximum - minimum if use_range else maximum
    slope = (at_max - at_min if use_range else at_max) * (denominator == raw)
    return ClipStatistics(at_min.view_as(cam), slope.view_as(cam), denominator, scores)


def cam_loss_torch(
    cam: Tensor, num_frames: int, use_range: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Do the same as :func:`cam_loss_triton` in plain PyTorch, in float64 too and for any T; differentiable
    any number of times."""
    cam = cam.to(accumulator(cam.dtype)).flatten(2)
    minimum, maximum = _extremes(cam)
    scores = _scores(cam, minimum, _denominator(minimum, maximum, use_range, eps))
    ordered, order = scores.sort(dim=1, stable=True)  # NaN last
    return ordered[:, :num_frames].mean(1), scores, order[:, :num_frames].contiguous()


def cam_loss_backward_torch(grad_scores: Tensor, cam: Tensor, use_range: bool, eps: float) -> Tensor:
    """Do the same as :func:`cam_loss_backward_triton` in plain PyTorch, in float64 too and for any T."""
    at_min, slope, denominator, scores = clip_statistics(cam, use_range, eps)
    positions = at_min.shape[2]
    through_min = positions * grad_scores.sum(1, keepdim=True)
    through_denominator = (grad_scores * scores).sum(1, keepdim=True)
    grad = grad_scores[..., None] - through_min[..., None] * at_min - through_denominator[..., None] * slope
    return (grad / denominator[..., None]).to(cam.dtype).view(cam.shape)
