"""Registration, gradient and argument checks of temporal_shift."""

from torch import Tensor
from torch.library import triton_op

from taf_fast.kernels.common import runs_on_triton
from taf_fast.kernels.temporal_shift import temporal_shift_reference, temporal_shift_triton

from .checks import check_floating


def temporal_shift(x: Tensor, num_segments: int, fold_div: int = 8) -> Tensor:
    """Exchange channels with the neighbouring frames, as TSM does; with fold = C // fold_div and t in a clip,

        out[t, :fold] = x[t+1, :fold]        out[t, fold:2*fold] = x[t-1, fold:2*fold]

    the remaining channels copied and zeros beyond the ends of the clip. Differentiable any number of times.

    Args:
        x: [B*T,C,h,w], the frames of a clip in a row, any layout; may be empty.
        num_segments: T, at least 1.
        fold_div: at least 2. Fewer than fold_div channels are all copied.

    Returns:
        A new tensor of x's shape and dtype, in its memory format.

    Raises:
        ValueError: x is not 4-dimensional, num_segments does not divide its frames, or a number is too small.
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
    return _temporal_shift(x, num_segments, fold_div, False)


@triton_op("taf_fast::temporal_shift", mutates_args=())
def _temporal_shift(x: Tensor, num_segments: int, fold_div: int, reverse: bool) -> Tensor:
    if runs_on_triton(x):
        return temporal_shift_triton(x, num_segments, fold_div, reverse)
    return temporal_shift_reference(x, num_segments, fold_div, reverse)


def _save_settings(ctx, inputs, output):
    _, ctx.num_segments, ctx.fold_div, ctx.reverse = inputs


def _backward(ctx, grad):
    return _temporal_shift(grad, ctx.num_segments, ctx.fold_div, not ctx.reverse), None, None, None


_temporal_shift.register_autograd(_backward, setup_context=_save_settings)
