"""Count what a training step asks of a GPU, on fake tensors: no GPU is needed and nothing is computed.

The step runs at full size on tensors that have shapes and no values, within a mode that sees every operation
that reaches the dispatcher. Nothing is timed, and the counts are the same on every machine.

- A *launch* is a kernel that the operation starts on a GPU: none for a view or an allocation, two for a batch
  norm, one for each gradient of a convolution, one for every 48 to 110 tensors of a ``_foreach`` operation,
  and as many as the Triton kernels of this package have.
- The *bytes* of a launch are those that it has to read and write.
- *Unfused* are the bytes of all launches but convolutions and matrix products.
- A *wait* is a value that the host reads from the device.
- The *peak memory* is that of all storages that are alive at the same time: parameters, buffers, momentum,
  clips, activations and gradients, without a convolution's workspace and the allocator's rounding.

The operations are those of a CPU: on a GPU dropout, for one, takes fewer.
"""

import contextlib
import dataclasses
import functools
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from taf_fast import models
from taf_fast.augment import TemporalAugment
from taf_fast.augment.replay import Replay
from taf_fast.models.dual_batch_norm import add_adversarial_bn
from taf_fast.models.memory_format import channels_last
from taf_fast.precision import autocast
from taf_fast.step import PlainStep, TAFStep

CLASSES = 174
#: The phase within the attack that goes back through what the clean forward recorded.
REPLAY = "replay in the attack"
#: Of the step as a whole; what is in none of the others is in the first.
PHASES = (
    "input, choice, losses",
    "clean forward",
    "clean backward",
    "attack",
    REPLAY,
    "adversarial forward",
    "adversarial backward",
    "optimiser",
)

_MATRIX = {"convolution", "convolution_backward", "mm", "addmm", "bmm", "baddbmm"}
_ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh"}
_VIEWS = {"detach", "alias", "_unsafe_view", "_reshape_alias"}
#: Launches of this package's Triton kernels; cam_gradient also clears its counters.
_OWN = {
    "temporal_shift": 1,
    "frame_cam": 1,
    "frame_cam_backward": 1,
    "cam_loss": 1,
    "cam_loss_backward": 1,
    "cam_gradient": 4,
    "pgd_step": 1,
}
# Tensors in a launch of a multi-tensor kernel, by the number of lists, and elements in one.
_TENSORS_A_LAUNCH = {1: 110, 2: 64, 3: 48, 4: 36}
_ELEMENTS_A_LAUNCH = 320 * 65536


@dataclasses.dataclass(frozen=True)
class Launch:
    """One kernel: its phase, whether it is a convolution or matrix product, its operations and bytes."""

    phase: str
    operation: str
    matrix: bool
    flops: float
    bytes: float


@dataclasses.dataclass(frozen=True)
class Wait:
    """The host waits for the first ``launches`` launches of the step to be done."""

    phase: str
    launches: int


@dataclasses.dataclass
class Counts:
    """The counts of a phase or of a whole step, see the module."""

    launches: int = 0
    matrix_launches: int = 0
    unfused_bytes: float = 0
    flops: float = 0
    waits: int = 0

    def add(self, event: Launch | Wait) -> None:
        if isinstance(event, Wait):
            self.waits += 1
            return
        self.launches += 1
        self.flops += event.flops
        if event.matrix:
            self.matrix_launches += 1
        else:
            self.unfused_bytes += event.bytes


@dataclasses.dataclass(frozen=True)
class StepCounts:
    """What a step of ``clips`` clips does, in order, and its peak memory in bytes. ``attacked`` of the clips
    are attacked with ``steps`` attack steps; None in a plain step."""

    clips: int
    attacked: int | None
    steps: int
    events: list[Launch | Wait]
    peak_bytes: int

    @property
    def name(self) -> str:
        """The step in words."""
        if self.attacked is None:
            return "plain"
        return f"TAF, p = {self.attacked / self.clips:.3g}" + (
            f", K = {self.steps}" if self.steps > 1 else ""
        )

    @property
    def phases(self) -> dict[str, Counts]:
        """The counts of every phase that the step has."""
        counts: dict[str, Counts] = {}
        for event in self.events:
            counts.setdefault(event.phase, Counts()).add(event)
        return {phase: counts[phase] for phase in PHASES if phase in counts}

    @property
    def total(self) -> Counts:
        """The counts of the whole step."""
        total = Counts()
        for event in self.events:
            total.add(event)
        return total


def fake_model(mode: FakeTensorMode, name: str, num_segments: int, dual: bool) -> Any:
    """A model in train mode and channels_last, with or without adversarial batch norms, whose parameters are
    fake tensors of ``mode``."""
    with torch.device("meta"):
        model = models.build(name, CLASSES, num_segments).train()
        if dual:
            add_adversarial_bn(model)
        channels_last(model)
    with mode:
        return model._apply(lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cpu"))


def count_step(
    name: str,
    num_segments: int = 8,
    size: int = 224,
    batch_size: int = 30,
    precision: str = "bfloat16",
    attacked: int | None = None,
    steps: int = 1,
    attack_bn: str = "frozen",
    one_backward: bool = False,
) -> StepCounts:
    """Count a training step as fine-tuning runs it, in eager mode and channels_last: forwards, backwards, the
    norm of the gradient and the optimiser.

    Args:
        name, num_segments: see :func:`taf_fast.models.build`.
        size: side of the frames in pixels.
        batch_size: uint8 clips per step.
        precision: one of :data:`taf_fast.precision.PRECISIONS`.
        attacked: number of attacked clips of a TAF step; None for a plain step.
        steps, attack_bn: see :class:`taf_fast.TemporalAugment`.
        one_backward: call the step as another trainer does, with one backward at its end, which is then all
            in "adversarial backward".
    """
    mode = FakeTensorMode()
    model = fake_model(mode, name, num_segments, dual=attacked is not None)
    with mode:
        optimizer = torch.optim.SGD(model.parameter_groups(5e-4), lr=0.01, momentum=0.9, fused=True)
        clips = torch.empty(batch_size, num_segments, size, size, 3, dtype=torch.uint8)
        labels = torch.empty(batch_size, dtype=torch.int64)
        counter = _Counter(attacked or 0)
        step = _step(model, attacked, steps, attack_bn, counter)
        parameters = list(model.parameters())

        def run() -> None:
            optimizer.zero_grad(set_to_none=True)
            with autocast(torch.device("cpu"), precision):
                if one_backward:
                    out = step(clips, labels)
                    with counter.phase("adversarial backward"):
                        out["loss"].backward()
                else:
                    out = step.accumulate_grads(clips, labels, backward=counter.backward)
            del out
            with counter.phase("optimiser"):
                nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)
                optimizer.step()

        parts: Any = {
            name: counter.in_phase(REPLAY, getattr(Replay, name)) for name in ("__init__", "gradient")
        }
        with counter, mock.patch.multiple(Replay, **parts):
            run()  # examines the model, and makes the momentum
            optimizer.zero_grad(set_to_none=True)
            momentum = [state["momentum_buffer"] for state in optimizer.state.values()]
            counter.start([*model.parameters(), *model.buffers(), *momentum, clips, labels])
            run()
    return StepCounts(batch_size, attacked, steps, counter.events, counter.peak)


def _step(
    model: nn.Module, attacked: int | None, steps: int, attack_bn: str, counter: "_Counter"
) -> PlainStep | TAFStep:
    """The step, whose parts tell the counter their phases."""
    if attacked is None:
        plain: Any = PlainStep(model, compile=False)
        plain._forward = counter.in_phase("clean forward", plain._forward)
        return plain
    augment: Any = TemporalAugment(steps=steps, attack_bn=attack_bn)
    augment.attack = counter.in_phase("attack", augment.attack)
    step: Any = TAFStep(model, augment, compile=False)
    step._clean = counter.in_phase("clean forward", step._clean)
    step._adversarial = counter.in_phase("adversarial forward", step._adversarial)
    return step


class _Counter(TorchDispatchMode):
    """Collects the ``events`` and the ``peak`` in bytes from :meth:`start` on.

    Every integer that the host reads is ``attacked``, every other number is 0.5, and no two tensors differ.
    """

    def __init__(self, attacked: int):
        super().__init__()
        self.attacked = attacked
        self.start([])

    def start(self, tensors: list[Tensor]) -> None:
        """Begin with the memory of ``tensors``, and without events."""
        self.events: list[Launch | Wait] = []
        self.peak = self._live = self._launches = 0
        self._phase = PHASES[0]
        self._backwards = iter(("clean backward", "adversarial backward"))
        self._storages: dict[int, Any] = {}
        self._written: dict[int, int] = {}  # by storage: the launches up to its last one
        for tensor in tensors:
            self._hold(tensor)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        before, self._phase = self._phase, name
        try:
            yield
        finally:
            self._phase = before

    def in_phase(self, name: str, function: Callable) -> Callable:
        @functools.wraps(function)
        def call(*args, **kwargs):
            with self.phase(name):
                return function(*args, **kwargs)

        return call

    def backward(self, loss: Tensor) -> None:
        with self.phase(next(self._backwards)):
            loss.backward()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        given = {key: value for key, value in kwargs.items() if key != "out"}
        read = [value for value in tree_leaves((args, given)) if isinstance(value, Tensor)]
        if name == "_local_scalar_dense":
            self.events.append(Wait(self._phase, self._written.get(_storage(read[0]), 0)))
            return 0.5 if read[0].is_floating_point() else self.attacked
        if name == "equal":
            self.events.append(Wait(self._phase, self._launches))
            return True
        out = func(*args, **kwargs)
        written = [value for value in tree_leaves(out) if isinstance(value, Tensor)]
        for tensor in written:
            self._hold(tensor)
        mutated = func._schema.is_mutable and not written  # as of _foreach_add_
        if (written or mutated) and not (func.is_view or name in _VIEWS or name in _ALLOCATIONS):
            self._launch(func, name, args, kwargs, out, read, written)
        return out

    def _launch(self, func, name, args, kwargs, out, read, written) -> None:
        flops = 0.0
        if func._overloadpacket in flop_registry:
            flops = flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        kernels = kernel_bytes(name, args, read, written)
        for moved in kernels:
            launch = Launch(self._phase, name, name in _MATRIX, flops / len(kernels), moved)
            self.events.append(launch)
        self._launches += len(kernels)
        for tensor in written:
            self._written[_storage(tensor)] = self._launches

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = _storage(tensor), storage.nbytes()
        if key in self._storages:
            return

        def gone(_, live=self._storages) -> None:
            if live.pop(key, None) is not None and live is self._storages:
                self._live -= size

        self._storages[key] = weakref.ref(storage, gone)
        self._live += size
        self.peak = max(self.peak, self._live)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def kernel_bytes(name: str, args: tuple, read: list[Tensor], written: list[Tensor]) -> list[float]:
    """The bytes that each launch of an operation reads and writes."""
    moved_in, moved_out = sum(map(_bytes, read)), sum(map(_bytes, written))
    if name == "convolution" and args[2] is not None:
        return [moved_in + moved_out, 2 * moved_out]  # cuDNN adds no bias
    if name == "convolution_backward":
        # The gradient of the input does not depend on the input, nor that of the weight on the weight.
        grad, x, weight = map(_bytes, args[:3])
        return [grad + weight + x for wanted in args[-1][:2] if wanted]
    if name == "native_batch_norm":
        return [_bytes(args[0]), _bytes(args[0]) + moved_out]  # the statistics, the values
    if name == "native_batch_norm_backward":
        grad, x = map(_bytes, args[:2])
        return [grad + x, grad + x + (_bytes(written[0]) if args[-1][0] else 0)]
    if name.startswith(("_foreach_", "_fused_")):
        lists = [value for value in args if isinstance(value, (list, tuple)) and value]
        lists = [values for values in lists if isinstance(values[0], Tensor)]
        limit = _TENSORS_A_LAUNCH[min(len(lists) + bool(written), max(_TENSORS_A_LAUNCH))]
        elements = sum(tensor.numel() for tensor in lists[0])
        count = max(math.ceil(len(lists[0]) / limit), math.ceil(elements / _ELEMENTS_A_LAUNCH))
        changed = lists[::2] if name.startswith("_fused_") else lists[:1]  # parameters and momentum
        moved = moved_in + (moved_out or sum(map(_bytes, tree_leaves(changed))))
        return [moved / count] * count
    if name in _OWN:
        return [(moved_in + moved_out) / _OWN[name]] * _OWN[name]
    if name == "copy_":
        return [_bytes(args[1]) + moved_out]
    if name in ("fill_", "zero_"):
        return [moved_out]
    if name in ("index_select", "index", "gather"):
        return [2 * moved_out]
    return [moved_in + moved_out]


def _bytes(tensor: Tensor) -> int:
    """The bytes of the distinct elements of a tensor."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return math.prod(sizes) * tensor.element_size()
