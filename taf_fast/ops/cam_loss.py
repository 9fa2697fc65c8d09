"""Registration, gradients and argument checks of cam_loss."""

import torch
from torch import Tensor

import taf_fast.kernels.cam_loss as kernels
from taf_fast.kernels.cam_loss import (
    MAX_FRAMES,
    cam_loss_backward_torch,
    cam_loss_backward_triton,
    cam_loss_torch,
    cam_loss_triton,
    clip_statistics,
)
from taf_fast.kernels.common import runs_on_triton
from taf_fast.ops.checks import check_floating
from taf_fast.ops.registration import triton_op

DENOMINATORS = ("max", "range")


def cam_loss(
    cam: Tensor, num_frames: int, denominator: str = "max", eps: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise the maps of a clip, score its frames, and average the lowest scores (Eqs. 3 to 5).

    Per clip, with minimum m and maximum M over all its frames and positions:

        r = (cam - m) / D,  D = M ("max", Eq. 3 as printed) or M - m ("range"),  |D| at least eps, sign kept
        scores_t = sum over h,w of r_t        loss = mean of the num_frames lowest scores

    loss and scores are twice differentiable, also through m and M (at the first position on ties); no
    gradient flows through D where eps applies. frames is not differentiable. On CUDA, clips of more than 32
    frames take the plain PyTorch path.

    NaN or infinity stays in its own clip, whose loss and gradient are then meaningless; frames still holds
    distinct valid indices. A NaN makes every score of the clip NaN. An infinity makes the score of its own
    frame NaN; the other scores of the clip follow the formula and are 0 for +infinity.

    Args:
        cam: [B,T,h,w], float64, float32, bfloat16 or float16, any layout, any sign; T, h and w at least 1; B
            may be 0.
        num_frames: N, from 1 to T.
        denominator: D, "max" or "range".
        eps: smallest magnitude of D, positive. D = 0 becomes +eps.

    Returns:
        loss [B] and scores [B,T] in float32 (float64 for float64 input), and frames int64 [B,N], the chosen
        frames by ascending score: the lower index first on ties, NaN scores last.

    Raises:
        ValueError: an argument is not as stated above.
    """
    check_floating("cam", cam)
    if cam.dim() != 4:
        raise ValueError(f"cam must be [B,T,h,w], got {cam.dim()} dimensions")
    if min(cam.shape[1:]) < 1:
        raise ValueError(f"cam needs at least one frame and one position, got {list(cam.shape)}")
    if not 1 <= num_frames <= cam.shape[1]:
        raise ValueError(f"num_frames must be from 1 to the {cam.shape[1]} frames of cam, got {num_frames}")
    if denominator not in DENOMINATORS:
        raise ValueError(f"denominator must be one of {DENOMINATORS}, got {denominator!r}")
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}")
    if not runs_on_triton(cam):  # a map is small: the op's dispatch would take longer than its work
        return cam_loss_torch(cam, num_frames, denominator == "range", eps)
    return _cam_loss(cam, num_frames, denominator == "range", eps)


@triton_op("cam_loss", kernels)
def _cam_loss(cam: Tensor, num_frames: int, use_range: bool, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    if runs_on_triton(cam) and cam.shape[1] <= MAX_FRAMES:
        return cam_loss_triton(cam, num_frames, use_range, eps)
    return cam_loss_torch(cam, num_frames, use_range, eps)


@triton_op("cam_loss_backward", kernels)
def _cam_loss_backward(grad_scores: Tensor, cam: Tensor, use_range: bool, eps: float) -> Tensor:
    if runs_on_triton(cam) and cam.shape[1] <= MAX_FRAMES:
        return cam_loss_backward_triton(grad_scores, cam, use_range, eps)
    return cam_loss_backward_torch(grad_scores, cam, use_range, eps)


def _save_for_backward(ctx, inputs, output):
    cam, _, ctx.use_range, ctx.eps = inputs
    _, _, frames = output
    ctx.save_for_backward(cam, frames)


def _backward(ctx, grad_loss, grad_scores, _):
    cam, frames = ctx.saved_tensors
    share = (grad_loss / frames.shape[1])[:, None].expand(frames.shape)
    grad_scores = grad_scores + torch.zeros_like(grad_scores).scatter(1, frames, share)
    return _cam_loss_backward(grad_scores, cam, ctx.use_range, ctx.eps), None, None, None


def _save_for_double_backward(ctx, inputs, output):
    grad_scores, cam, ctx.use_range, ctx.eps = inputs
    ctx.save_for_backward(grad_scores, cam, output)


def _double_backward(ctx, v):
    # J = dA is linear in grad_scores, and cam enters only through D and the scores. With the cotangent V and
    # d = dD/dcam, the Hessian in cam is -(J d' + d J')/D, of rank two. Nothing of size T*P is reduced more
    # than once, so plain PyTorch is enough.
    grad_scores, cam, jacobian = ctx.saved_tensors
    at_min, slope, denominator, scores = clip_statistics(cam, ctx.use_range, ctx.eps)
    v, jacobian = v.flatten(2).to(scores.dtype), jacobian.flatten(2).to(scores.dtype)
    positions = v.shape[2]
    v_min, v_slope, v_jacobian = ((v * other).sum((1, 2))[:, None] for other in (at_min, slope, jacobian))
    d_scores = (v.sum(2) - positions * v_min - scores * v_slope) / denominator
    d_cam = -((v_slope / denominator)[..., None] * jacobian + (v_jacobian / denominator)[..., None] * slope)
    return d_scores, d_cam.unflatten(2, cam.shape[2:]).to(cam.dtype), None, None


_cam_loss.register_autograd(_backward, setup_context=_save_for_backward)
_cam_loss_backward.register_autograd(_double_backward, setup_context=_save_for_double_backward)
