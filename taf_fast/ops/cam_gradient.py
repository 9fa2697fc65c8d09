"""Registration and argument checks of cam_gradient."""

import torch
from torch import Tensor

import taf_fast.kernels.cam_gradient as kernels
from taf_fast.kernels.cam_gradient import cam_gradient_torch, cam_gradient_triton
from taf_fast.kernels.cam_loss import MAX_FRAMES
from taf_fast.kernels.common import runs_on_triton
from taf_fast.ops.cam_loss import DENOMINATORS
from taf_fast.ops.checks import check_classes, check_device, check_floating, check_tensor
from taf_fast.ops.registration import triton_op


def cam_gradient(
    features: Tensor,
    weight: Tensor,
    logits: Tensor,
    targets: Tensor,
    num_frames: int,
    denominator: str = "max",
    eps: float = 1e-6,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradient of the attack loss with respect to the features of a pooled linear head (Eqs. 2 to
    5).

    The head is a mean over h,w, an optional dropout mask, a linear layer and a mean over the frames. The
    result is the exact derivative with respect to F = features, of second order because G depends on F too,
    of

        L = sum over the batch of cam_loss(frame_cam(F, G), num_frames, denominator, eps)
        G = d(sum over the batch of cross_entropy(logits, targets))/dF

    in closed form, where q is a position of the map and dz = dL/dlogits:

        dL/dF[b,t,c,q] = w[b,t,c] s[b,t,q] + mask[b,t,c] (dz[b] weight)[c] / (T h w)
        w[b,t,c] = mask[b,t,c] ((softmax(logits[b]) - onehot(targets[b])) weight)[c] / (T h w)
        s[b,t,q] = dL/dcam[b,t,q]

    Autograd would give the same by differentiating the two ops and the head twice; this op takes three
    launches that read F once. As in cam_loss, ties go to the first position and no gradient flows through D
    where eps applies. Autograd treats the results as constants. On CUDA, clips of more than 32 frames take
    the plain PyTorch path.

    Args:
        features: F, [B,T,C,h,w], float64, float32, bfloat16 or float16, any layout; every size but B at least
            1.
        weight: the weight of the linear layer, [K,C], in any of these dtypes.
        logits: the head's output for features, [B,K], in any of these dtypes.
        targets: int64 [B], from 0 to K - 1. Values on a GPU are not checked, nor while a graph is captured.
        num_frames: N, from 1 to T.
        denominator: D in cam_loss, "max" or "range".
        eps: smallest magnitude of D, positive.
        mask: the factors that dropout applied to the pooled features (0 or 1/(1-p)), [B,T,C], in any of these
            dtypes; None without dropout.

    Returns:
        the gradient, in the shape, dtype and memory format of features; the loss of every clip, [B], in
        float32 (float64 for float64 features); the chosen frames, int64 [B,N], in the order of cam_loss.

    Raises:
        ValueError: a shape, dtype, device or number is not as stated above.
    """
    check_floating("features", features)
    if features.dim() != 5:
        raise ValueError(f"features must be [B,T,C,h,w], got {features.dim()} dimensions")
    if min(features.shape[1:]) < 1:
        raise ValueError(
            "features needs at least one frame, one channel and one position, "
            f"got [B,T,C,h,w] = {list(features.shape)}"
        )
    B, T, C = features.shape[:3]
    check_floating("weight", weight)
    if weight.dim() != 2 or weight.shape[1] != C or weight.shape[0] < 1:
        raise ValueError(f"weight must be [K,{C}] with at least one class, got {list(weight.shape)}")
    K = weight.shape[0]
    check_floating("logits", logits)
    if logits.shape != (B, K):
        raise ValueError(f"logits must be [B,K] = {[B, K]}, got {list(logits.shape)}")
    check_tensor("targets", targets)
    if targets.dtype != torch.int64:
        raise ValueError(f"targets must be int64, got {targets.dtype}")
    if targets.shape != (B,):
        raise ValueError(f"targets must be [B] = {[B]}, got {list(targets.shape)}")
    check_classes("targets", targets, K)
    tensors = {"weight": weight, "logits": logits, "targets": targets}
    if mask is not None:
        check_floating("mask", mask)
        if mask.shape != (B, T, C):
            raise ValueError(f"mask must be [B,T,C] = {[B, T, C]}, got {list(mask.shape)}")
        tensors["mask"] = mask
    for name, tensor in tensors.items():
        check_device(name, tensor, "features", features)
    if not 1 <= num_frames <= T:
        raise ValueError(f"num_frames must be from 1 to the {T} frames of features, got {num_frames}")
    if denominator not in DENOMINATORS:
        raise ValueError(f"denominator must be one of {DENOMINATORS}, got {denominator!r}")
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}")
    return _cam_gradient(
        features.detach(),
        weight.detach(),
        logits.detach(),
        targets,
        None if mask is None else mask.detach(),
        num_frames,
        denominator == "range",
        eps,
    )


@triton_op("cam_gradient", kernels)
def _cam_gradient(
    features: Tensor,
    weight: Tensor,
    logits: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    num_frames: int,
    use_range: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    if runs_on_triton(features) and features.shape[1] <= MAX_FRAMES:
        return cam_gradient_triton(features, weight, logits, targets, mask, num_frames, use_range, eps)
    return cam_gradient_torch(features, weight, logits, targets, mask, num_frames, use_range, eps)
