"""The input gradient of the attacked clips, from what one forward of the whole batch left behind.

Eq. 6 needs only the gradient of the pixels, and only for the attacked clips. If the batch statistics are
constants, all it takes from the clean forward is which ReLUs were open, where the maxima were, and how each
batch norm scaled. Differentiating through the statistics involves all clips and also takes the input of each
batch norm. :class:`Recording` keeps these values. :class:`Replay` runs the model's Python code once more, on
placeholder tensors without data: their operations do nothing forward, and compute only the input gradient
backward. Neither the forward nor the gradient of any weight is computed again.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.overrides import TorchFunctionMode

from taf_fast.augment.batch_statistics import (
    FreezeStatistics,
    RecordStatistics,
    Statistics,
    inverse_deviations,
)
from taf_fast.augment.rows import Rows
from taf_fast.models.compilation import uncompiled

_CONVOLUTIONS = (torch.conv2d, torch.conv3d)
_RELUS = (F.relu, torch.relu, Tensor.relu)
_MAX_POOLS = (F.max_pool2d, torch.max_pool2d)
_ADDITIONS = (torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__)
# Operations that move values without depending on them.
_INDIFFERENT = {
    *("flatten", "unflatten", "view", "reshape", "permute", "transpose", "movedim", "unsqueeze", "squeeze"),
    *("__getitem__", "contiguous", "pad", "cat", "unbind", "zeros_like"),
}
_METADATA = {"dim", "size", "__get__"}


class NotReplayable(Exception):
    """The model has an operation whose gradient depends on values that a recording does not keep."""


class Recording(RecordStatistics):
    """Collects what :class:`Replay` needs, and the batch statistics in ``calls``; changes no result. ``tape``
    holds the outputs of ReLUs and the (outputs, indices) of max pools, in order. Where a part of the model is
    checkpointed the forward is not ``replayable``: a tape would keep what checkpointing saves. ``normalised``
    gives the convolutions of a replayed forward, in order, with the batch norm that follows each; None where
    none does. ``traces`` has a number for each recorded operation: another one whenever torch.compile traces
    it anew, and 0 where it is not compiled.

    Args:
        keep_inputs: also keep the inputs of batch norms, to differentiate through the batch statistics.
    """

    def __init__(self, keep_inputs: bool = False):
        super().__init__(keep_inputs)
        self.tape: list = []
        self.replayable = True
        self.normalised: Callable[[], Sequence[NormalisedConvolution | None]] = tuple
        self.traces: list[int] = []

    def again(self) -> Callable[[], AbstractContextManager]:
        self.never_replay()
        return super().again()

    def never_replay(self) -> None:
        """From here on, keep nothing but the statistics."""
        self.free()
        self.replayable = self.keep_inputs = False

    @cached_property
    def constant(self) -> FreezeStatistics:
        return FoldedStatistics(self)

    def free(self) -> None:
        """Release everything but the statistics."""
        self.tape.clear()
        self.calls = [statistics._replace(input=None) for statistics in self.calls]

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not self.replayable:
            return super().__torch_function__(func, types, args, kwargs)
        if func in _RELUS:
            self._trace()
            out = func(*args, **kwargs)
            self.tape.append(out.detach())
            return out
        if func in _MAX_POOLS:
            self._trace()
            out, indices = torch.ops.aten.max_pool2d_with_indices(
                args[0], *_pool_options(*args[1:], **kwargs)
            )
            self.tape.append((out.detach(), indices))
            return out
        return super().__torch_function__(func, types, args, kwargs)

    def _batch_norm(self, *args, **kwargs):
        self._trace()
        return super()._batch_norm(*args, **kwargs)

    def _trace(self) -> None:
        self.traces.append(trace_number() if torch.compiler.is_compiling() else 0)


_TRACES = itertools.count(1)


def trace_number() -> int:
    """A new number. torch.compile calls it while it traces, and repeats it as a constant."""
    return next(_TRACES)


class Replay:
    """The backward from the outputs of ``stages(x)`` to chosen clips of ``x``.

    Args:
        stages: clips [B,T,3,H,W] -> tensors whose first dimension is the batch.
        recording: of a forward that began with ``stages(x)``.
        x: the whole batch.
        rows: the n chosen clips; all, if the recording kept inputs.

    ``norms`` is the number of batch norms in ``stages``.

    Raises:
        NotReplayable: the model has an operation that cannot be replayed.
    """

    def __init__(
        self,
        stages: Callable[[Tensor], tuple[Tensor, ...]],
        recording: Recording,
        x: Tensor,
        rows: Rows,
    ):
        # Not len(), which would make a number of a symbol.
        chosen = x.shape[0] if rows.index is None else rows.index.shape[0]
        self._clips = _nothing(x, (chosen, *x.shape[1:])).requires_grad_()
        if not recording.replayable:
            raise NotReplayable("activation checkpointing")
        mode = _ReplayMode(recording, x.shape[0], chosen, rows)
        with torch.enable_grad(), uncompiled(), mode:
            self._outputs = stages(self._clips)
        self.norms = mode.norms
        mode.set_scales()
        # Not the nodes: they hold what was recorded.
        normalised = [node.normalised for node in mode.convolutions]
        recording.normalised = lambda: normalised

    def gradient(self, gradients: tuple[Tensor, ...]) -> Tensor:
        """Gradients with respect to the outputs of the chosen clips -> with respect to the clips,
        [n,T,3,H,W]."""
        return torch.autograd.grad(self._outputs, self._clips, gradients)[0]


class _ReplayMode(TorchFunctionMode):
    """Answers every operation of the model from the recording, or refuses it."""

    def __init__(self, recording: Recording, batch: int, chosen: int, rows: Rows):
        super().__init__()
        self.statistics: list[Statistics] = recording.calls
        self.tape: Iterator = iter(recording.tape)
        self.batch = batch
        self.chosen = chosen
        self.rows = rows.index
        self.norms = 0
        self.convolutions: list[Any] = []  # their nodes in the graph
        # What has a batch norm's ``scale``, with its weight and statistics.
        self.scales: list[tuple[Any, Tensor | None, Statistics]] = []
        self.indices: dict[int, Tensor] = {}  # the chosen rows' frames, by frames per row
        # Recorded tensors by the shape of a frame. A kernel that does not read its argument gets one of them.
        self.recorded = {tensor.shape[1:]: tensor for tensor in _tensors(recording.tape)}
        # By storage: tensors that were changed in place, whose earlier value is gone, and outputs of
        # convolutions that nothing has read yet.
        self.overwritten: dict[int, Tensor] = {}
        self.unused: dict[int, Tensor] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name in _METADATA:
            return func(*args, **kwargs)
        storages = [_storage(arg) for arg in args if isinstance(arg, Tensor)]
        if any(storage in self.overwritten for storage in storages):
            raise NotReplayable(f"{name} of a tensor from before it was changed in place")
        if func in (Tensor.add_, Tensor.__iadd__) or kwargs.get("inplace"):
            self.overwritten[_storage(args[0])] = args[0]
        if func is F.batch_norm:
            return self._batch_norm(*args, **kwargs)
        for storage in storages:
            self.unused.pop(storage, None)
        if func in _CONVOLUTIONS:
            parameters, options = _convolution_options(*args[1:], **kwargs)
            out = _Convolution.apply(args[0], parameters, options, self._like(args[0].shape))
            self.unused[_storage(out)] = out
            node: Any = out.grad_fn
            # Decided by the whole batch: the operations do not depend on the number of chosen clips.
            node.scales_weight = args[1].numel() < out.numel() // self.chosen * self.batch
            self.convolutions.append(node)
            return out
        if func in _RELUS:
            return _ReLU.apply(args[0], self._take(next(self.tape)))
        if func in _MAX_POOLS:
            out, indices = map(self._take, next(self.tape))
            return _MaxPool.apply(args[0], out, indices, _pool_options(*args[1:], **kwargs))
        if func is torch.ops.taf_fast.temporal_shift.default:
            return _TemporalShift.apply(*args)
        if func in _ADDITIONS and not kwargs and args[0].shape == getattr(args[1], "shape", None):
            return _Addition.apply(args[0], args[1])
        times_a_parameter = name in ("mul", "__mul__") and isinstance(args[1], torch.nn.Parameter)
        if name in _INDIFFERENT or times_a_parameter:
            return func(*args, **kwargs)
        raise NotReplayable(name)

    def _batch_norm(
        self, x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
    ):
        statistics = self.statistics[self.norms]
        self.norms += 1
        storage = _storage(x)
        convolution = self.unused.pop(storage, None)
        if statistics.input is not None:
            return _BatchNorm.apply(x, None if weight is None else weight.detach(), statistics)
        out = _Scale.apply(x)
        scaling: Any = out.grad_fn
        if convolution is not None:
            # The convolution applies the scale: nothing else may read its output now.
            node: Any = convolution.grad_fn
            scaling.scale = None
            scaling = node.normalised = NormalisedConvolution(node.parameters, weight, bias, statistics)
            self.overwritten[storage] = x
        self.scales.append((scaling, weight, statistics))
        return out

    def set_scales(self) -> None:
        """Compute the scale of every batch norm."""
        scales = scales_of([(weight, statistics) for _, weight, statistics in self.scales])
        for (scaling, _, _), scale in zip(self.scales, scales, strict=True):
            scaling.scale = scale
        folded = [(node.normalised, node.dtype) for node in self.convolutions if node.normalised is not None]
        if folded and get_proxy_mode() is not None:
            weights_together(folded)

    def _like(self, shape) -> Tensor | None:
        """Memory of this shape that is there already."""
        recorded = self.recorded.get(shape[1:])
        return None if recorded is None else recorded[: shape[0]]

    def _take(self, recorded: Tensor) -> Tensor:
        """The rows of the chosen clips, in the memory format of the whole."""
        if self.rows is None:
            return recorded
        frames = recorded.shape[0] // self.batch
        if frames not in self.indices:
            within = torch.arange(frames, device=self.rows.device)
            self.indices[frames] = (self.rows[:, None] * frames + within).flatten()
        index = self.indices[frames]
        if recorded.dim() == 4 and recorded.is_contiguous(memory_format=torch.channels_last):
            return recorded.movedim(1, -1).index_select(0, index).movedim(-1, 1)
        return recorded.index_select(0, index)


def _tensors(tape: list) -> Iterator[Tensor]:
    for recorded in tape:
        yield recorded[0] if isinstance(recorded, tuple) else recorded


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # fake tensors have one too


def _nothing(like: Tensor, shape, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of a shape, without memory for its values."""
    return like.new_empty((), dtype=dtype).expand(shape)


def _unwritten(like: Tensor, shape) -> Tensor:
    """Memory that is neither written nor read, in the memory format of ``like``, which decides that of a
    kernel's result."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=_format(like))


def _format(tensor: Tensor) -> torch.memory_format:
    last = {4: torch.channels_last, 5: torch.channels_last_3d}[tensor.dim()]
    is_last = tensor.is_contiguous(memory_format=last) and not tensor.is_contiguous()
    return last if is_last else torch.contiguous_format


def _autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a convolution's result."""
    device = x.device.type
    casts = torch.is_autocast_enabled(device) and x.dtype != torch.float64
    return torch.get_autocast_dtype(device) if casts else x.dtype


@torch.no_grad()
def scales_of(norms: Sequence[tuple[Tensor | None, Statistics]]) -> list[Tensor]:
    """What each batch norm, with this weight and these statistics, multiplies by, [C]: computed together."""
    scales = inverse_deviations([statistics for _, statistics in norms])
    weighted = [index for index, (weight, _) in enumerate(norms) if weight is not None]
    if weighted:
        weights: list[Any] = [norms[index][0] for index in weighted]
        products = torch._foreach_mul([scales[index] for index in weighted], weights)
        for index, scale in zip(weighted, products, strict=True):
            scales[index] = scale
    return scales


class NormalisedConvolution:
    """A convolution and the batch norm after it, whose statistics are constants: one convolution.

    Args:
        parameters: weight and bias of the convolution.
        norm_weight, shift, statistics: the batch norm's weight, bias and statistics.

    ``scale`` [C] is the batch norm's (:func:`scales_of`), once it is computed.
    """

    scale: Tensor | None = None

    def __init__(
        self,
        parameters: tuple[Tensor, Tensor | None],
        norm_weight: Tensor | None,
        shift: Tensor | None,
        statistics: Statistics,
    ):
        self.parameters = parameters
        self.norm_weight = norm_weight
        self.shift = shift
        self.statistics = statistics
        self._weight: Tensor | None = None

    @torch.no_grad()
    def weight(self, dtype: torch.dtype) -> Tensor:
        """The weight of that one convolution, rounded to ``dtype`` once."""
        if self._weight is None or self._weight.dtype != dtype:
            assert self.scale is not None
            weight = self.parameters[0]
            self._weight = _scaled(weight, self.scale, 0, dtype)
        return self._weight


@torch.no_grad()
def weights_together(convolutions: list[tuple[NormalisedConvolution, torch.dtype]]) -> None:
    """Compute :meth:`NormalisedConvolution.weight` of each, in its dtype. A graph has few kernels for all of
    them; as operations they are no fewer than one by one."""
    weights = [convolution.parameters[0] for convolution, _ in convolutions]
    scales: list[Any] = [convolution.scale for convolution, _ in convolutions]
    scales = [s.view(-1, *[1] * (w.dim() - 1)) for s, w in zip(scales, weights, strict=True)]
    rounded = [torch.empty_like(w, dtype=d) for w, (_, d) in zip(weights, convolutions, strict=True)]
    torch._foreach_copy_(rounded, torch._foreach_mul(weights, scales))
    for (convolution, _), weight in zip(convolutions, rounded, strict=True):
        convolution._weight = weight


@torch.no_grad()
def _biases(convolutions: Sequence[NormalisedConvolution]) -> list[Tensor]:
    """The bias [C] of each convolution that includes its batch norm: shift + (bias - mean) * scale."""
    shifts, means = [], []
    for convolution in convolutions:
        mean, bias = convolution.statistics.mean, convolution.parameters[1]
        means.append(mean if bias is None else mean - bias)
        shifts.append(torch.zeros_like(mean) if convolution.shift is None else convolution.shift)
    scales: list[Any] = [convolution.scale for convolution in convolutions]
    return list(torch._foreach_addcmul(shifts, means, scales, value=-1))


class FoldedStatistics(FreezeStatistics):
    """As :class:`FreezeStatistics`, for forwards of the clips that a replay went back to: a batch norm that
    follows a convolution is part of it, and costs an addition forward and nothing backward."""

    def __init__(self, recording: Recording):
        super().__init__(recording.calls)
        self._convolutions = recording.normalised()
        folded = [convolution for convolution in self._convolutions if convolution is not None]
        without = [convolution for convolution in folded if convolution.scale is None]
        scales = scales_of([(convolution.norm_weight, convolution.statistics) for convolution in without])
        for convolution, scale in zip(without, scales, strict=True):
            convolution.scale = scale
        self._biases = dict(zip(folded, _biases(folded), strict=True)) if folded else {}

    def __enter__(self):
        self._next, self._out = iter(self._convolutions), None
        return super().__enter__()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in _CONVOLUTIONS:
            return self._convolution(func, *args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)

    def _convolution(self, func, x, weight, bias=None, *options, **named):
        folded = next(self._next, None)
        if folded is None or folded.parameters[0] is not weight:
            return func(x, weight, bias, *options, **named)
        out = func(x, folded.weight(_autocast_dtype(x)), None, *options, **named)
        # Not as the convolution's bias, which would be rounded to its dtype.
        self._out = out.add_(self._biases[folded].view(-1, *[1] * (out.dim() - 2)))
        return out

    def _batch_norm(self, x, *args, **kwargs):
        if self._out is None or _storage(x) != _storage(self._out):
            return super()._batch_norm(x, *args, **kwargs)
        self._out = None
        self.used += 1
        return x


class _Convolution(Function):
    """Includes the batch norm that follows it, if there is one."""

    @staticmethod
    def forward(ctx, x, parameters, options, unread):
        ctx.parameters, ctx.shape, ctx.options, ctx.normalised = parameters, x.shape, options, None
        ctx.unread, ctx.dtype = unread, _autocast_dtype(x)
        weight, _ = parameters
        stride, padding, dilation, _ = options
        sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
        out = [(size + 2 * p - d * (kernel - 1) - 1) // s + 1 for size, kernel, s, p, d in sizes]
        return _nothing(x, (x.shape[0], weight.shape[0], *out), ctx.dtype)

    @staticmethod
    def backward(ctx, grad):
        stride, padding, dilation, groups = ctx.options
        weight, _ = ctx.parameters
        if ctx.normalised is None:
            weight = weight.to(grad.dtype)
        elif weight.dtype == grad.dtype and not ctx.scales_weight:
            grad = _scaled(grad, ctx.normalised.scale, 1)  # the smaller of the two
        else:
            weight = ctx.normalised.weight(grad.dtype)
        x = ctx.unread
        if x is None or x.dtype != grad.dtype or _format(x) != _format(grad):
            x = _unwritten(grad, ctx.shape)
        no_padding, input_only = [0] * len(stride), (True, False, False)
        gradient, _, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, stride, padding, dilation, False, no_padding, groups, input_only
        )
        return gradient, None, None, None


class _Scale(Function):
    """A batch norm; ``scale`` is None where its convolution applies it."""

    @staticmethod
    def forward(ctx, x):
        return _nothing(x, x.shape)

    @staticmethod
    def backward(ctx, grad):
        return grad if ctx.scale is None else _scaled(grad, ctx.scale, 1)


class _BatchNorm(Function):
    """Through the batch statistics."""

    @staticmethod
    def forward(ctx, x, weight, statistics):
        (invstd,) = inverse_deviations([statistics])
        ctx.recorded = statistics.input, weight, statistics.mean, invstd
        return _nothing(x, x.shape)

    @staticmethod
    def backward(ctx, grad):
        normalised, weight, mean, invstd = ctx.recorded
        eps, input_only = 0.0, (True, False, False)  # invstd contains eps
        gradient, _, _ = torch.ops.aten.native_batch_norm_backward(
            grad, normalised, weight, None, None, mean, invstd, True, eps, input_only
        )
        return gradient, None, None


class _ReLU(Function):
    @staticmethod
    def forward(ctx, x, out):
        ctx.out = out
        return _nothing(x, x.shape)

    @staticmethod
    def backward(ctx, grad):
        return torch.ops.aten.threshold_backward(grad, ctx.out, 0), None


class _MaxPool(Function):
    @staticmethod
    def forward(ctx, x, out, indices, options):
        ctx.indices, ctx.shape, ctx.options = indices, x.shape, options
        return _nothing(x, out.shape)

    @staticmethod
    def backward(ctx, grad):
        x = _unwritten(grad, ctx.shape)
        pool_backward = torch.ops.aten.max_pool2d_with_indices_backward
        return pool_backward(grad, x, *ctx.options, ctx.indices), None, None, None


class _TemporalShift(Function):
    @staticmethod
    def forward(ctx, x, num_segments, fold_div, reverse):
        ctx.options = num_segments, fold_div, not reverse
        return _nothing(x, x.shape)

    @staticmethod
    def backward(ctx, grad):
        return torch.ops.taf_fast.temporal_shift(grad, *ctx.options), None, None, None


class _Addition(Function):
    @staticmethod
    def forward(ctx, x, y):
        return _nothing(x, x.shape)

    @staticmethod
    def backward(ctx, grad):
        return grad, grad


def _scaled(tensor: Tensor, scale: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """``scale`` [C] times a tensor whose dimension ``dim`` is C, rounded once: to ``dtype``, or to the
    tensor's."""
    dtype = tensor.dtype if dtype is None else dtype
    scale = scale.view(-1, *[1] * (tensor.dim() - dim - 1))
    if dtype == torch.promote_types(tensor.dtype, scale.dtype):
        return tensor * scale
    if get_proxy_mode() is not None:  # a graph has no use for memory that is given
        return (tensor * scale).to(dtype)
    return torch.mul(tensor, scale, out=torch.empty_like(tensor, dtype=dtype))


def _convolution_options(weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    if isinstance(padding, str):
        raise NotReplayable(f"convolution with padding {padding}")
    dims = weight.dim() - 2
    return (weight, bias), (*(_per_dim(value, dims) for value in (stride, padding, dilation)), groups)


def _pool_options(kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    stride = kernel_size if stride is None else stride
    return *(_per_dim(value, 2) for value in (kernel_size, stride, padding, dilation)), ceil_mode


def _per_dim(value, dims: int) -> tuple[int, ...]:
    value = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return value * dims if len(value) == 1 else value
