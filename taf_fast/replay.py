"""The input gradient of chosen clips from what one forward of the whole batch left behind.

Eq. 6 needs the gradient of the pixels alone, of the attacked clips alone. With the batch statistics
held constant that takes, of the clean forward, only which ReLUs were open, where the maxima were and
how each batch norm scaled; where these are differentiated through, which takes all clips, also what
each batch norm normalised. :class:`Recording` keeps these; :class:`Replay` runs the model's Python once
more on stand-ins without values, whose operations do nothing forward and the gradient of
their input backward, for the chosen rows. Neither the forward nor any weight's gradient is computed
again.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from taf_fast.batch_statistics import RecordStatistics, Statistics

_RELUS = (F.relu, torch.relu, Tensor.relu)
_MAX_POOLS = (F.max_pool2d, torch.max_pool2d)
_ADDITIONS = (torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__)
# What moves values about without looking at them.
_INDIFFERENT = {
    *("flatten", "unflatten", "view", "reshape", "permute", "transpose", "movedim", "unsqueeze", "squeeze"),
    *("__getitem__", "contiguous", "pad", "cat", "unbind", "zeros_like"),
}
_METADATA = {"dim", "size", "__get__"}


class NotReplayable(Exception):
    """The model has an operation whose gradient depends on values that no recording keeps."""


class Recording(RecordStatistics):
    """Collects what :class:`Replay` needs, and in ``calls`` the batch statistics; changes no
    result. ``tape`` holds the outputs of ReLUs and the (outputs, indices) of max pools, in order.

    Args:
        keep_inputs: of batch norms too, to differentiate through the batch statistics.
    """

    def __init__(self, keep_inputs: bool = False):
        super().__init__(keep_inputs)
        self.tape: list = []

    def free(self) -> None:
        """Let go of everything but the statistics."""
        self.tape.clear()
        self.calls = [statistics._replace(input=None) for statistics in self.calls]

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _RELUS:
            out = func(*args, **kwargs)
            self.tape.append(out.detach())
            return out
        if func in _MAX_POOLS:
            out, indices = torch.ops.aten.max_pool2d_with_indices(
                args[0], *_pool_options(*args[1:], **kwargs)
            )
            self.tape.append((out.detach(), indices))
            return out
        return super().__torch_function__(func, types, args, kwargs)


class Replay:
    """The way back from the outputs of ``stages(x)`` to chosen clips of ``x``.

    Args:
        stages: clips [B,T,3,H,W] -> tensors that begin with the batch's dimension.
        recording: made while ``stages(x)`` ran, at its beginning.
        x: the whole batch.
        rows: int64 [n], the chosen clips; None for all, as it must be if the recording kept inputs.

    ``norms`` is how many batch norms ``stages`` has.

    Raises:
        NotReplayable: see there.
    """

    def __init__(
        self,
        stages: Callable[[Tensor], tuple[Tensor, ...]],
        recording: Recording,
        x: Tensor,
        rows: Tensor | None,
    ):
        chosen = len(x) if rows is None else len(rows)
        self._clips = _nothing(x, (chosen, *x.shape[1:])).requires_grad_()
        mode = _ReplayMode(recording, len(x), rows)
        with torch.enable_grad(), mode:
            self._outputs = stages(self._clips)
        self.norms = mode.norms

    def gradient(self, gradients: tuple[Tensor, ...]) -> Tensor:
        """Gradients of the chosen clips' outputs -> that of the clips, [n,T,3,H,W]."""
        return torch.autograd.grad(self._outputs, self._clips, gradients)[0]


class _ReplayMode(TorchFunctionMode):
    """Answers every operation of the model by the recording, or refuses."""

    def __init__(self, recording: Recording, batch: int, rows: Tensor | None):
        super().__init__()
        self.statistics: list[Statistics] = recording.calls
        self.tape: Iterator = iter(recording.tape)
        self.batch, self.rows, self.norms = batch, rows, 0
        self.indices: dict[int, Tensor] = {}  # the chosen rows' frames, by frames per row
        # By storage: what was changed in place, so that its results stand elsewhere, and convolutions'
        # outputs that nothing has read yet.
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
        if func in (torch.conv2d, torch.conv3d):
            out = _Convolution.apply(args[0], *_convolution_options(*args[1:], **kwargs))
            self.unused[_storage(out)] = out
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
        mean, variance, normalised = self.statistics[self.norms]
        self.norms += 1
        storage = _storage(x)
        convolution = self.unused.pop(storage, None)
        invstd = (variance + eps).rsqrt()
        if normalised is not None:
            return _BatchNorm.apply(x, normalised, None if weight is None else weight.detach(), mean, invstd)
        scale = invstd if weight is None else invstd * weight.detach()
        if convolution is None:
            return _Scale.apply(x, scale)
        # The convolution takes the scale over: nobody else may read its output now.
        convolution.grad_fn.scale = scale
        self.overwritten[storage] = x
        return _Scale.apply(x, None)

    def _take(self, recorded: Tensor) -> Tensor:
        """The chosen clips' part, in the memory format of the whole."""
        if self.rows is None:
            return recorded
        frames = len(recorded) // self.batch
        if frames not in self.indices:
            within = torch.arange(frames, device=self.rows.device)
            self.indices[frames] = (self.rows[:, None] * frames + within).flatten()
        index = self.indices[frames]
        if recorded.dim() == 4 and recorded.is_contiguous(memory_format=torch.channels_last):
            return recorded.movedim(1, -1).index_select(0, index).movedim(-1, 1)
        return recorded.index_select(0, index)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _nothing(like: Tensor, shape, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of a shape, without memory for values nor time to write one."""
    return like.new_empty((), dtype=dtype).expand(shape)


def _unwritten(like: Tensor, shape) -> Tensor:
    """Memory nobody writes or reads, in ``like``'s memory format: by it a kernel chooses the result's."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}[like.dim()]
    is_last = like.is_contiguous(memory_format=last) and not like.is_contiguous()
    memory_format = last if is_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


def _autocast_dtype(x: Tensor) -> torch.dtype:
    """What a convolution of ``x`` gives."""
    device = x.device.type
    casts = torch.is_autocast_enabled(device) and x.dtype != torch.float64
    return torch.get_autocast_dtype(device) if casts else x.dtype


class _Convolution(Function):
    """With the batch norm that follows it, where one does: ``scale`` [C] of its outputs."""

    @staticmethod
    def forward(ctx, x, weight, options):
        ctx.weight, ctx.shape, ctx.options, ctx.scale = weight, x.shape, options, None
        stride, padding, dilation, _ = options
        sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
        out = [(size + 2 * p - d * (kernel - 1) - 1) // s + 1 for size, kernel, s, p, d in sizes]
        return _nothing(x, (x.shape[0], weight.shape[0], *out), _autocast_dtype(x))

    @staticmethod
    def backward(ctx, grad):
        stride, padding, dilation, groups = ctx.options
        weight = ctx.weight.to(grad.dtype)
        if ctx.scale is not None:
            # Whichever is less to multiply.
            if weight.numel() < grad.numel():
                weight = weight * ctx.scale.to(grad.dtype).view(-1, *[1] * (weight.dim() - 1))
            else:
                grad = _scaled(grad, ctx.scale)
        x, no_padding, input_only = _unwritten(grad, ctx.shape), [0] * len(stride), (True, False, False)
        gradient, _, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, stride, padding, dilation, False, no_padding, groups, input_only
        )
        return gradient, None, None


class _Scale(Function):
    """A batch norm; ``scale`` None where its convolution has taken that over."""

    @staticmethod
    def forward(ctx, x, scale):
        ctx.scale = scale
        return _nothing(x, x.shape)

    @staticmethod
    def backward(ctx, grad):
        return grad if ctx.scale is None else _scaled(grad, ctx.scale), None


class _BatchNorm(Function):
    """Through its batch statistics; ``normalised`` is what it had to normalise."""

    @staticmethod
    def forward(ctx, x, normalised, weight, mean, invstd):
        ctx.recorded = normalised, weight, mean, invstd
        return _nothing(x, x.shape)

    @staticmethod
    def backward(ctx, grad):
        normalised, weight, mean, invstd = ctx.recorded
        eps, input_only = 0.0, (True, False, False)  # eps is in invstd
        gradient, _, _ = torch.ops.aten.native_batch_norm_backward(
            grad, normalised, weight, None, None, mean, invstd, True, eps, input_only
        )
        return gradient, None, None, None, None


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


def _scaled(grad: Tensor, scale: Tensor) -> Tensor:
    return grad * scale.to(grad.dtype).view(-1, *[1] * (grad.dim() - 2))


def _convolution_options(weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    if isinstance(padding, str):
        raise NotReplayable(f"convolution with padding {padding}")
    dims = weight.dim() - 2
    return weight.detach(), (*(_per_dim(value, dims) for value in (stride, padding, dilation)), groups)


def _pool_options(kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    stride = kernel_size if stride is None else stride
    return *(_per_dim(value, 2) for value in (kernel_size, stride, padding, dilation)), ceil_mode


def _per_dim(value, dims: int) -> tuple[int, ...]:
    value = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return value * dims if len(value) == 1 else value
