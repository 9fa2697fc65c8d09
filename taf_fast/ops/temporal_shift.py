"""Registration, gradient and argument checks of temporal_shift."""

import torch
import torch.nn.functional as F
from torch import Tensor

import taf_fast.kernels.temporal_shift as kernels
from taf_fast.kernels.common import runs_on_triton
from taf_fast.kernels.temporal_shift import temporal_shift_torch, temporal_shift_triton
from taf_fast.ops.checks import check_floating
from taf_fast.ops.registration import triton_op


def temporal_shift(x: Tensor, num_segments: int, fold_div: int = 8) -> Tensor:
    """Shift channels to the neighbouring frames, as TSM does (Lin et al., 2019).

    With fold = C // fold_div and the frames t of one clip:

        out[t, :fold] = x[t+1, :fold]        out[t, fold:2*fold] = x[t-1, fold:2*fold]

    The other channels are copied; beyond the ends of the clip are zeros. The op is differentiable any number
    of times. ``torch.export`` records it as plain PyTorch operators, so that its programs run without
    taf_fast.

    Args:
        x: [B*T,C,h,w], the frames of a clip in a row, float64, float32, bfloat16 or float16, any layout; may
            be empty.
        num_segments: T, at least 1.
        fold_div: at least 2. If C is below fold_div, all channels are copied.

    Returns:
        A new tensor with the shape, dtype and memory format of x.

    Raises:
        ValueError: x is not 4-dimensional or not of a floating dtype, num_segments does not divide its
            frames, or a number is too small.
    """
    check_floating("x", x)
    if x.dim() != 4:
        raise ValueError(f"x must be [B*T,C,h,w], got {x.dim()} dimensions")
    if num_segments < 1:
        raise ValueError(f"num_segments must be at least 1, got {num_segments}")
    if x.shape[0] % num_segments != 0:
        raise ValueError(f"num_segments must divide the {x.shape[0]} frames of x, got {num_segments}")
    if fold_div < 2:
        raise ValueError(f"fold_div must be at least 2, got {fold_div}")
    if torch.compiler.is_exporting():
        return _in_plain_operators(x, num_segments, fold_div)
    return _temporal_shift(x, num_segments, fold_div, False)


def _in_plain_operators(x: Tensor, num_segments: int, fold_div: int) -> Tensor:
    """The shift without writes in place, which ONNX would express by scatters."""
    fold = x.shape[1] // fold_div
    clips = torch.unflatten(x, 0, (-1, num_segments))
    ahead, back, still = clips.split([fold, fold, x.shape[1] - 2 * fold], 2)
    ahead = F.pad(ahead[:, 1:], (0, 0, 0, 0, 0, 0, 0, 1))
    back = F.pad(back[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0))
    return torch.cat([ahead, back, still], 2).flatten(0, 1)


@triton_op("temporal_shift", kernels)
def _temporal_shift(x: Tensor, num_segments: int, fold_div: int, reverse: bool) -> Tensor:
    if runs_on_triton(x):
        return temporal_shift_triton(x, num_segments, fold_div, reverse)
    return temporal_shift_torch(x, num_segments, fold_div, reverse)


def _save_settings(ctx, inputs, output):
    _, ctx.num_segments, ctx.fold_div, ctx.reverse = inputs


def _backward(ctx, grad):
    return _temporal_shift(grad, ctx.num_segments, ctx.fold_div, not ctx.reverse), None, None, None


_temporal_shift.register_autograd(_backward, setup_context=_save_settings)
