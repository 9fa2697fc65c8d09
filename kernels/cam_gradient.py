"""The attack loss of a pooled linear head, and its exact gradient with respect to the features (Eqs. 2 to 5).

The head is a mean over the P = h*w positions, an optional dropout mask, a linear layer and a mean over the T
frames. The features reach the loss along two paths, through the map and through the gradient G that weights
its channels, and both have a closed form. Per clip, with p = softmax(logits), e = p - onehot(target) and the
loss L of cam_loss:

    w_tc = mask_tc (e W)_c / (T P)           map_t(q) = sum_c w_tc F_tc(q)
    s = dL/dmap                              v_tc = dL/dw_tc = sum_q s_t(q) F_tc(q)
    de = W (sum_t mask_t v_t) / (T P)        dz = dL/dlogits = p (de - <p, de>)
    dF_tc(q) = w_tc s_t(q) + mask_tc (W' dz)_c / (T P)

s is constant over each frame except at the positions of the minimum and the maximum. So v combines the sums
of F over positions, which are computed along with the map, and two columns of F: F is read once and dF is
written once. Between the two passes lies one small problem per clip, which the last program to finish the
clip's map solves. B=64, T=8, C=2048, 7x7 in bf16 is 103 MB each way.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cam_loss import (
    cam_loss_backward_torch,
    cam_loss_torch,
    clip_blocks,
    order_of_frames,
    tile_statistics,
)
from .common import accumulator, in_cache, on_device_of, wrap_triton
from .frame_cam import frame_cam_torch, weighted_sums

# Tile for reading F, (BLOCK_C, BLOCK_P): up to 16 elements per thread at 8 warps; more would spill in the
# clip part. One program covers a 7x7 frame, so that its sums over positions are written once: the clip part
# reads all of them. With channels fast (channels_last), 64 channels of bf16 fill a line of 128 bytes.
CHANNELS_FAST = (64, 64)
POSITIONS_FAST = (32, 64)
MAP_WARPS = 8
# Tile for writing dF, (BLOCK_C, BLOCK_P), at 4 warps. A row of 49 positions fits in one tile, since shorter
# pieces do not coalesce; 8 elements per thread there, because 16 addresses of 64 bits take 160 registers.
WRITE_CHANNELS_FAST = (64, 32)
WRITE_POSITIONS_FAST = (16, 64)
# Tile of the weight, (BLOCK_K, BLOCK_C): 16 elements per thread at 4 warps, 8 in the clip part's 8 warps.
CLASSES, CHANNELS = 32, 64
# Elements in a tile of sums over positions, [BLOCK_T, BLOCK_V]: 8 per thread at 8 warps.
CLIP_TILE = 2048
# Logits per pass: the usual data sets (174, 400 or 700 classes) need one pass.
MAX_BLOCK_LOGITS = 1024


@triton.jit
def _softmax_statistics(logits, K, ls_k, BLOCK_L: tl.constexpr):
    """Return the maximum and the sum of exp(logits - maximum)."""
    k = tl.arange(0, BLOCK_L)
    highest = tl.full((BLOCK_L,), float("-inf"), tl.float32)
    for start in range(0, K, BLOCK_L):
        at = logits + (start + k).to(tl.int64) * ls_k
        z = tl.load(at, mask=k < K - start, other=float("-inf")).to(tl.float32)
        highest = tl.maximum(highest, z)
    maximum = tl.max(highest)
    total = tl.zeros((BLOCK_L,), tl.float32)
    for start in range(0, K, BLOCK_L):
        at = logits + (start + k).to(tl.int64) * ls_k
        z = tl.load(at, mask=k < K - start, other=float("-inf")).to(tl.float32)
        total += tl.exp(z - maximum)
    return maximum, tl.sum(total)


@triton.jit
def _cam_gradient_weights_kernel(
    logits, targets, weight, weights, T, C, K, P, ls_b, ls_k, ts_b, ws_k, ws_c,
    BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """weights[b,c] = (e W)_c / (T P): the map's channel weights before the dropout mask."""
    b = tl.program_id(0).to(tl.int64)
    logits += b * ls_b
    target = tl.load(targets + b * ts_b)
    maximum, normaliser = _softmax_statistics(logits, K, ls_k, BLOCK_L)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = c < C
    total = tl.zeros((BLOCK_K, BLOCK_C), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        z = tl.load(logits + k.to(tl.int64) * ls_k, mask=k < K, other=float("-inf")).to(tl.float32)
        e = tl.exp(z - maximum) / normaliser - tl.where(k == target, 1.0, 0.0)
        offsets = k.to(tl.int64)[:, None] * ws_k + c.to(tl.int64)[None, :] * ws_c
        row = tl.load(weight + offsets, mask=(k < K)[:, None] & in_c[None, :], other=0.0).to(tl.float32)
        total += e[:, None] * row
    tl.store(weights + b * C + c, tl.sum(total, axis=0) / (T * P), mask=in_c)


@triton.jit
def _finish_clip(
    features, mask, logits, weight, cam, pooled, loss, frames, slopes, d_weights, d_error, d_logits,
    T, C, P, K, N, pieces, fs_t, fs_c, fs_p, ms_t, ms_c, ls_k, ws_k, ws_c, eps,
    USE_RANGE: tl.constexpr, MASKED: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_V: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Compute everything that depends on the whole map of a clip; the pointers point to the clip.

    pooled [T,pieces,C] holds sums of F over positions. The function writes loss, frames, slopes (s),
    d_weights (the masked sum of v over the frames), d_error (de) and d_logits (dz).
    """
    _, denominator, floored, argmin, argmax, score = tile_statistics(
        cam, T, P, P, 1, eps, USE_RANGE, BLOCK_T, BLOCK_Q
    )
    t = tl.arange(0, BLOCK_T)
    rank = order_of_frames(score, T, BLOCK_T)
    chosen = (t < T) & (rank < N)
    value = tl.sum(tl.where(chosen, score, 0.0)) / N
    tl.store(frames + rank, t.to(tl.int64), mask=chosen)
    tl.store(loss, value)

    # s = (1_S/N - at_min delta_argmin - at_max delta_argmax) / D
    share = tl.where(chosen, 1.0, 0.0) / N
    at_max = tl.where(floored, 0.0, value)
    at_min = P - at_max if USE_RANGE else P + 0.0
    for start in range(0, P, BLOCK_Q):
        q = start + tl.arange(0, BLOCK_Q)
        at = t[:, None] * P + q[None, :]
        s = share[:, None] - tl.where(at == argmin, at_min, 0.0) - tl.where(at == argmax, at_max, 0.0)
        tl.store(slopes + at, s / denominator, mask=(t < T)[:, None] & (q < P)[None, :])

    # If all values are infinite, no position was found. Any valid one will do, because D is NaN.
    argmin, argmax = tl.minimum(argmin, T * P - 1), tl.minimum(argmax, T * P - 1)
    t_min, t_max = (argmin // P).to(tl.int64), (argmax // P).to(tl.int64)
    low = features + t_min * fs_t + (argmin % P).to(tl.int64) * fs_p
    high = features + t_max * fs_t + (argmax % P).to(tl.int64) * fs_p
    rows = t.to(tl.int64)[:, None]
    for start in range(0, C, BLOCK_V):
        c = start + tl.arange(0, BLOCK_V)
        in_c = c < C
        columns = c.to(tl.int64)
        inside = chosen[:, None] & in_c[None, :]
        v = tl.zeros((BLOCK_T, BLOCK_V), tl.float32)
        for part in range(pieces):
            offsets = (rows * pieces + part) * C + columns[None, :]
            v += tl.load(pooled + offsets, mask=inside, other=0.0)
        f_min = tl.load(low + columns * fs_c, mask=in_c, other=0.0).to(tl.float32)
        f_max = tl.load(high + columns * fs_c, mask=in_c, other=0.0).to(tl.float32)
        if MASKED:
            v *= tl.load(mask + rows * ms_t + columns[None, :] * ms_c, mask=inside, other=0.0).to(tl.float32)
            f_min *= tl.load(mask + t_min * ms_t + columns * ms_c, mask=in_c, other=0.0).to(tl.float32)
            f_max *= tl.load(mask + t_max * ms_t + columns * ms_c, mask=in_c, other=0.0).to(tl.float32)
        v = tl.sum(v, axis=0) / N - at_min * f_min - at_max * f_max
        tl.store(d_weights + c, v / denominator, mask=in_c)

    # The barriers make the stores visible to the other threads of this program.
    tl.debug_barrier()
    for start_k in range(0, K, BLOCK_K):
        k = start_k + tl.arange(0, BLOCK_K)
        products = tl.zeros((BLOCK_K, BLOCK_W), tl.float32)
        for start in tl.range(0, C, BLOCK_W, num_stages=5):
            c = start + tl.arange(0, BLOCK_W)
            v = tl.load(d_weights + c, mask=c < C, other=0.0)
            offsets = k.to(tl.int64)[:, None] * ws_k + c.to(tl.int64)[None, :] * ws_c
            inside = (k < K)[:, None] & (c < C)[None, :]
            products += tl.load(weight + offsets, mask=inside, other=0.0).to(tl.float32) * v[None, :]
        tl.store(d_error + k, tl.sum(products, axis=1) / (T * P), mask=k < K)

    tl.debug_barrier()
    maximum, normaliser = _softmax_statistics(logits, K, ls_k, BLOCK_L)
    mean = tl.zeros((BLOCK_L,), tl.float32)
    for start in range(0, K, BLOCK_L):
        k = start + tl.arange(0, BLOCK_L)
        z = tl.load(logits + k.to(tl.int64) * ls_k, mask=k < K, other=float("-inf")).to(tl.float32)
        de = tl.load(d_error + k, mask=k < K, other=0.0)
        mean += tl.exp(z - maximum) / normaliser * de
    centre = tl.sum(mean)
    for start in range(0, K, BLOCK_L):
        k = start + tl.arange(0, BLOCK_L)
        z = tl.load(logits + k.to(tl.int64) * ls_k, mask=k < K, other=float("-inf")).to(tl.float32)
        de = tl.load(d_error + k, mask=k < K, other=0.0)
        tl.store(d_logits + k, tl.exp(z - maximum) / normaliser * (de - centre), mask=k < K)


@triton.jit
def _cam_gradient_clip_kernel(
    features, weights, mask, logits, weight, cam, pooled, arrivals,
    loss, frames, slopes, d_weights, d_error, d_logits,
    T, C, P, K, N, fs_b, fs_t, fs_c, fs_p, ms_b, ms_t, ms_c, ls_b, ls_k, ws_k, ws_c, eps,
    USE_RANGE: tl.constexpr, MASKED: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Compute the map at some positions of a frame; the last program of a clip then finishes the clip."""
    frame = tl.program_id(0)  # divide in 32 bits: a 64-bit division is a subroutine
    b, t, frame = (frame // T).to(tl.int64), (frame % T).to(tl.int64), frame.to(tl.int64)
    piece, pieces = tl.program_id(1), tl.num_programs(1)
    features += b * fs_b
    weights += b * C
    mask += b * ms_b
    sums = pooled + (frame * pieces + piece) * C
    p = piece * BLOCK_P + tl.arange(0, BLOCK_P)
    total = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    # Staging keeps enough loads in flight when one program per frame is all that fills the device.
    for start in tl.range(0, C, BLOCK_C, num_stages=3):
        c = start + tl.arange(0, BLOCK_C)
        in_c = c < C
        offsets = t * fs_t + c.to(tl.int64)[:, None] * fs_c + p.to(tl.int64)[None, :] * fs_p
        f = tl.load(features + offsets, mask=in_c[:, None] & (p < P)[None, :], other=0.0).to(tl.float32)
        w = tl.load(weights + c, mask=in_c, other=0.0)
        if MASKED:
            w *= tl.load(mask + t * ms_t + c.to(tl.int64) * ms_c, mask=in_c, other=0.0).to(tl.float32)
        total += w[:, None] * f
        tl.store(sums + c, tl.sum(f, axis=1), mask=in_c)
    tl.store(cam + frame * P + p, tl.sum(total, axis=0), mask=p < P)

    # One thread counts the arrival for the whole program; the barrier orders the others' stores before it.
    tl.debug_barrier()
    arrived = tl.atomic_add(arrivals + b, 1, sem="acq_rel", scope="gpu")
    if arrived == T * pieces - 1:
        _finish_clip(
            features, mask, logits + b * ls_b, weight, cam + b * T * P, pooled + b * T * pieces * C,
            loss + b, frames + b * N, slopes + b * T * P,
            d_weights + b * C, d_error + b * K, d_logits + b * K,
            T, C, P, K, N, pieces, fs_t, fs_c, fs_p, ms_t, ms_c, ls_k, ws_k, ws_c, eps,
            USE_RANGE, MASKED, BLOCK_T, BLOCK_Q, BLOCK_V, BLOCK_L, BLOCK_K, BLOCK_W,
        )  # fmt: skip


@triton.jit
def _cam_gradient_kernel(
    weights, slopes, d_logits, weight, mask, gradient, T, C, P, K,
    ws_k, ws_c, ms_b, ms_t, ms_c, gs_b, gs_t, gs_c, gs_p,
    MASKED: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Write gradient = w s + mask (W' dz) / (T P) for some channels of all frames of a clip."""
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = c < C
    columns = c.to(tl.int64)
    total = tl.zeros((BLOCK_K, BLOCK_C), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        dz = tl.load(d_logits + b * K + k, mask=k < K, other=0.0)
        offsets = k.to(tl.int64)[:, None] * ws_k + columns[None, :] * ws_c
        row = tl.load(weight + offsets, mask=(k < K)[:, None] & in_c[None, :], other=0.0).to(tl.float32)
        total += dz[:, None] * row
    through_logits = tl.sum(total, axis=0) / (T * P)
    through_map = tl.load(weights + b * C + c, mask=in_c, other=0.0)
    slopes += b * T * P
    gradient += b * gs_b
    for t in range(T):
        w, h = through_map, through_logits
        if MASKED:
            at = mask + b * ms_b + tl.cast(t, tl.int64) * ms_t + columns * ms_c
            kept = tl.load(at, mask=in_c, other=0.0).to(tl.float32)
            w, h = w * kept, h * kept
        for start in range(0, P, BLOCK_P):
            p = start + tl.arange(0, BLOCK_P)
            s = tl.load(slopes + t * P + p, mask=p < P, other=0.0)
            g = (w[:, None] * s[None, :] + h[:, None]).to(gradient.dtype.element_ty)
            offsets = tl.cast(t, tl.int64) * gs_t + columns[:, None] * gs_c + p.to(tl.int64)[None, :] * gs_p
            tl.store(gradient + offsets, g, mask=in_c[:, None] & (p < P)[None, :])


def _tile(x: Tensor, channels_fast: tuple[int, int], positions_fast: tuple[int, int]) -> tuple[int, int]:
    block_c, block_p = channels_fast if x.stride(2) < x.stride(3) else positions_fast
    return tuple(
        min(block, triton.next_power_of_2(size))
        for block, size in zip((block_c, block_p), x.shape[2:], strict=True)
    )


def cam_gradient_triton(
    features: Tensor,
    weight: Tensor,
    logits: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    num_frames: int,
    use_range: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradient in three launches.

    Args:
        features: [B,T,C,h,w], float32, bfloat16 or float16, any strides; T at most MAX_FRAMES.
        weight: [K,C], any strides.
        logits: [B,K], any strides.
        targets: int64 [B], from 0 to K - 1.
        mask: [B,T,C], any strides, or None.
        num_frames: N, from 1 to T.
        use_range: D = M - m instead of D = M.
        eps: smallest magnitude of D.

    Returns:
        the gradient, like features; the loss, float32 [B]; the chosen frames, int64 [B,N].
    """
    B, T, C, h, w = features.shape
    K, P = len(weight), h * w
    shape = (h, w)
    features = features.flatten(3)  # copies only if the rows of the map cannot be joined, as after a crop
    gradient = torch.empty_like(features)

    def scratch(*size: int) -> Tensor:
        return torch.empty(size, device=features.device, dtype=torch.float32)

    loss = scratch(B)
    frames = torch.empty((B, num_frames), device=features.device, dtype=torch.int64)
    if B == 0:
        return gradient.unflatten(3, shape), loss, frames
    block_c, block_p = _tile(features, CHANNELS_FAST, POSITIONS_FAST)
    pieces = triton.cdiv(P, block_p)
    block_t, block_q = clip_blocks(T, P).values()
    block_l = min(MAX_BLOCK_LOGITS, triton.next_power_of_2(K))
    block_k, channels = min(CLASSES, triton.next_power_of_2(K)), triton.next_power_of_2(C)
    weights, d_weights, cam, slopes = scratch(B, C), scratch(B, C), scratch(B, T, P), scratch(B, T, P)
    pooled, d_error, d_logits = scratch(B, T, pieces, C), scratch(B, K), scratch(B, K)
    arrivals = torch.zeros(B, device=features.device, dtype=torch.int32)
    masked = mask is not None
    mask = mask if masked else weights[:, None].expand(B, T, C)  # never read
    with on_device_of(features):
        wrap_triton(_cam_gradient_weights_kernel)[(B, triton.cdiv(C, CHANNELS))](
            logits, targets, weight, weights, T, C, K, P,
            *logits.stride(), *targets.stride(), *weight.stride(),
            BLOCK_L=block_l, BLOCK_K=block_k, BLOCK_C=CHANNELS,
        )  # fmt: skip
        wrap_triton(_cam_gradient_clip_kernel)[(B * T, pieces)](
            features, weights, mask, logits, weight, cam, pooled, arrivals,
            loss, frames, slopes, d_weights, d_error, d_logits, T, C, P, K, num_frames,
            *features.stride(), *mask.stride(), *logits.stride(), *weight.stride(), eps,
            USE_RANGE=use_range, MASKED=masked, BLOCK_C=block_c, BLOCK_P=block_p,
            BLOCK_T=block_t, BLOCK_Q=block_q, BLOCK_V=min(CLIP_TILE // block_t, channels),
            BLOCK_L=block_l, BLOCK_K=block_k, BLOCK_W=min(CHANNELS, channels),
            num_warps=MAP_WARPS,
        )  # fmt: skip
        block_c, block_p = _tile(gradient, WRITE_CHANNELS_FAST, WRITE_POSITIONS_FAST)
        wrap_triton(_cam_gradient_kernel)[(B, triton.cdiv(C, block_c))](
            weights, slopes, d_logits, weight, mask, gradient, T, C, P, K,
            *weight.stride(), *mask.stride(), *gradient.stride(),
            MASKED=masked, BLOCK_K=block_k, BLOCK_C=block_c, BLOCK_P=block_p,
        )  # fmt: skip
    return gradient.unflatten(3, shape), loss, frames


def cam_gradient_torch(
    features: Tensor,
    weight: Tensor,
    logits: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    num_frames: int,
    use_range: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Do the same as :func:`cam_gradient_triton` in plain PyTorch, in float64 too and for any T."""
    B, T, C, h, w = features.shape
    precision = accumulator(features.dtype)
    cells = T * h * w
    weight, probabilities = weight.to(precision), logits.to(precision).softmax(1)
    labels = torch.arange(len(weight), device=logits.device)
    error = probabilities - (labels == targets[:, None]).to(precision)
    kept = 1.0 if mask is None else mask.to(precision)
    weights = kept * (_product(error, weight) / cells)[:, None].expand(B, T, C)
    cam = frame_cam_torch(features, weights)

    loss, scores, frames = cam_loss_torch(cam, num_frames, use_range, eps)
    share = torch.zeros_like(scores).scatter(1, frames, 1 / num_frames)
    slopes = cam_loss_backward_torch(share, cam, use_range, eps)

    d_weights = (kept * weighted_sums(features, slopes)).sum(1)
    d_error = _product(d_weights, weight.T) / cells
    d_logits = probabilities * (d_error - (probabilities * d_error).sum(1, keepdim=True))
    through_logits = kept * (_product(d_logits, weight) / cells)[:, None].expand(B, T, C)
    gradient = torch.empty_like(features)
    whole = features.dtype == precision or not in_cache(features)
    for clips in [slice(None)] if whole else [slice(clip, clip + 1) for clip in range(B)]:
        through_map = weights[clips, ..., None, None] * slopes[clips, :, None]
        gradient[clips] = through_map.add_(through_logits[clips, ..., None, None])
    return gradient, loss, frames


def _product(a: Tensor, b: Tensor) -> Tensor:
    """[B,n] times [n,m], in full precision under autocast too."""
    if not in_cache(a):
        return (a[..., None] * b).sum(1)
    return torch.mm(a, b, out=a.new_empty(len(a), b.shape[1]))
