"""Registration, gradients and argument checks of frame_cam."""

import torch
from torch import Tensor

import taf_fast.kernels.frame_cam as kernels
from taf_fast.kernels.common import accumulator, in_cache, runs_on_triton
from taf_fast.kernels.frame_cam import (
    frame_cam_backward_torch,
    frame_cam_backward_triton,
    frame_cam_torch,
    frame_cam_triton,
)
from taf_fast.ops.checks import check_device, check_floating, check_like, check_tensor
from taf_fast.ops.registration import triton_op


def frame_cam(features: Tensor, grads: Tensor, relu: bool = False) -> Tensor:
    """Compute the Grad-CAM map of every frame (Eq. 2).

        w[b,t,c] = mean over h,w of grads[b,t,c]        cam[b,t,q] = sum_c w[b,t,c] features[b,t,c,q]

    The op is differentiable any number of times in both arguments. NaN or infinity stays in its own frame: in
    features it affects only its own position of the map, in grads the whole map of the frame.

    Args:
        features: [B,T,C,h,w], float64, float32, bfloat16 or float16, any layout, h and w at least 1; B may be
            0.
        grads: the gradient of a scalar with respect to features, in the same shape, dtype and device; or its
            mean over h and w, [B,T,C], in the dtype of features or in float32.
        relu: keep only the positive part of the map.

    Returns:
        cam [B,T,h,w], contiguous; float32, or float64 for float64 features.

    Raises:
        ValueError: a shape, dtype or device is not as stated above.
    """
    check_floating("features", features)
    if features.dim() != 5:
        raise ValueError(f"features must be [B,T,C,h,w], got {features.dim()} dimensions")
    if features.shape[3] < 1 or features.shape[4] < 1:
        raise ValueError(f"features needs at least one position, got h,w = {list(features.shape[3:])}")
    check_tensor("grads", grads)
    precision = accumulator(features.dtype)
    if grads.dim() == 3:
        _check_pooled(features, grads)
        weights = grads.to(precision)
    else:
        check_like("grads", grads, "features", features)
        weights = _pooled(grads, precision)
    cam = _frame_cam(features, weights)
    return cam.relu() if relu else cam


def _pooled(grads: Tensor, precision: torch.dtype) -> Tensor:
    """The mean over h and w in ``precision``. On a CPU it would convert all of ``grads`` first."""
    if grads.dtype == precision or not in_cache(grads) or len(grads) == 0:
        return grads.mean((3, 4), dtype=precision)
    return torch.stack([clip.mean((2, 3), dtype=precision) for clip in grads])


def _check_pooled(features: Tensor, grads: Tensor) -> None:
    if grads.shape != features.shape[:3]:
        raise ValueError(
            f"grads must be [B,T,C,h,w] like features or pooled to {list(features.shape[:3])}, "
            f"got {list(grads.shape)}"
        )
    allowed = (features.dtype, accumulator(features.dtype))
    if grads.dtype not in allowed:
        raise ValueError(f"pooled grads must be {' or '.join(map(str, allowed))}, got {grads.dtype}")
    check_device("grads", grads, "features", features)


@triton_op("frame_cam", kernels)
def _frame_cam(features: Tensor, weights: Tensor) -> Tensor:
    if runs_on_triton(features):
        return frame_cam_triton(features, weights)
    return frame_cam_torch(features, weights)


@triton_op("frame_cam_backward", kernels)
def _frame_cam_backward(grad: Tensor, features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    if runs_on_triton(features):
        return frame_cam_backward_triton(grad, features, weights)
    return frame_cam_backward_torch(grad, features, weights)


def _save_inputs(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    return _frame_cam_backward(grad, *ctx.saved_tensors)


def _double_backward(ctx, v_features, v_weights):
    # The backward is bilinear in (grad, features) and in (grad, weights), so its gradients are the same two
    # ops with the cotangents in place of features and weights.
    grad, features, weights = ctx.saved_tensors
    d_grad = _frame_cam(v_features, weights) + _frame_cam(features, v_weights)
    _, d_weights = _frame_cam_backward(grad, v_features, weights)
    d_features, _ = _frame_cam_backward(grad, features, v_weights)
    return d_grad, d_features, d_weights


_frame_cam.register_autograd(_backward, setup_context=_save_inputs)
_frame_cam_backward.register_autograd(_double_backward, setup_context=_save_inputs)
