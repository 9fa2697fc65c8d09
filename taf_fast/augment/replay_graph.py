"""The replay as a graph of operations: traced once, then run without the model's Python code.

A replay of a ResNet-50 costs the host some 9 ms of Python, and each of its operations is a launch. Traced by
``make_fx``, it is one function of what the clean forward recorded, the model's parameters and the gradients
of the attacked clips at the stages, for any number of these clips. On a GPU ``torch.compile`` fuses its
operations; elsewhere they run as they are, with the same bits as the replay itself.

A replay repeats the operations of the clean forward, so it is traced only where that is compiled:
``Recording.traces`` then tells when torch.compile traced the forward anew, and with it the replay.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_flatten, tree_unflatten

from taf_fast.augment.batch_statistics import Statistics
from taf_fast.augment.replay import (
    NormalisedConvolution,
    NotReplayable,
    Recording,
    Replay,
    trace_number,
)
from taf_fast.augment.rows import Rows
from taf_fast.models.batch_counts import counted_at_once
from taf_fast.models.contract import StagedView
from taf_fast.models.modules import modules_of


class ReplayGraphs:
    """The graphs of one model's replays, traced when they are first needed: for each form of the clean
    forward one for all clips, one for a single clip and one or two for other numbers.

    What cannot be traced is replayed as it is: ``reasons`` has the reasons why, and each is a warning.
    """

    def __init__(self) -> None:
        torch.compiler.assume_constant_result(trace_number)
        self._graphs: dict[Any, list[ReplayGraph]] = {}
        self.reasons: list[str] = []

    def __reduce__(self) -> tuple:  # a copy traces the copy's model
        return ReplayGraphs, ()

    def replay(
        self, view: StagedView, recording: Recording, x: Tensor, rows: Rows, stages: tuple[Tensor, ...]
    ) -> "Replay | _GraphReplay":
        """As :class:`Replay`. The gradients will be like ``stages`` [n,...]."""
        if recording.traces and all(recording.traces):
            try:
                graph = self._graph(view, recording, x, rows, stages)
                return _GraphReplay(graph, view.model, recording, x, rows)
            except NotReplayable:
                raise
            except Exception as error:  # the tracer's errors are of many kinds
                self._explain(f"{type(error).__name__}: {error}")
        elif recording.replayable:
            self._explain("the clean forward is not one compiled graph")
        return Replay(view.stages, recording, x, rows)

    def _explain(self, reason: str) -> None:
        if reason not in self.reasons:
            self.reasons.append(reason)
            warnings.warn(f"the attack's replay is not one graph but operations: {reason}", stacklevel=2)

    def _graph(
        self, view: StagedView, recording: Recording, x: Tensor, rows: Rows, stages: tuple[Tensor, ...]
    ) -> "ReplayGraph":
        device = x.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        form = tuple(recording.traces), x.shape, x.stride(), x.dtype, autocast, rows.index is None
        graphs = self._graphs.setdefault(form, [])
        for graph in graphs:
            if graph.serves(len(stages[0])):
                return graph
        graphs.append(ReplayGraph(view, recording, x, rows, stages))
        return graphs[-1]


class _GraphReplay:
    """As :class:`Replay`, by a graph."""

    def __init__(self, graph: "ReplayGraph", model: nn.Module, recording: Recording, x: Tensor, rows: Rows):
        self.norms = graph.norms
        self._graph, self._tensors = graph, _tensors_of(model)
        self._recorded = recording.tape, recording.calls, x, rows
        normalised = graph.normalised, self._tensors, recording.calls
        recording.normalised = lambda: _normalised(*normalised)

    def gradient(self, gradients: tuple[Tensor, ...]) -> Tensor:
        """As :meth:`Replay.gradient`."""
        return self._graph(self._tensors, _inputs(*self._recorded, gradients))


class ReplayGraph:
    """One graph. ``norms`` is the number of batch norms in the stages; ``normalised`` has for each
    convolution where its values are: the positions of weight, bias and the batch norm's weight and bias among
    the model's tensors, and of its statistics among those recorded.

    Args:
        view, recording, x, rows, stages: as for :meth:`ReplayGraphs.replay`, of the first replay.
    """

    def __init__(
        self, view: StagedView, recording: Recording, x: Tensor, rows: Rows, stages: tuple[Tensor, ...]
    ):
        tensors, calls = _tensors_of(view.model), recording.calls
        leaves, spec = tree_flatten(_inputs(recording.tape, calls, x, rows, stages))
        positions = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        found: dict[str, Any] = {}

        def gradient(*inputs: Tensor) -> Tensor:
            values = list(leaves)
            for position, value in zip(positions, inputs, strict=True):
                values[position] = value
            tape, statistics, x, index, gradients = tree_unflatten(values, spec)
            again = Recording()
            again.tape, again.calls = tape, [Statistics(*each) for each in statistics]
            replay = Replay(view.stages, again, x, Rows(index))
            found.update(norms=replay.norms, convolutions=again.normalised(), calls=again.calls)
            return replay.gradient(gradients)

        dynamic = {id(tensor) for tensor in (rows.index, *stages) if rows.index is not None}
        inputs = [leaves[position] for position in positions]
        with counted_at_once(view.model):
            self.module, self._guards = _trace(gradient, inputs, [id(each) in dynamic for each in inputs])
        self._clips = len(stages[0])
        self._served: dict[int, bool] = {}
        used, self._parameters = _lift_parameters(self.module, tensors)
        self._inputs = [positions[index] for index in used]
        self._dynamic = [
            index for index, position in enumerate(self._inputs) if id(leaves[position]) in dynamic
        ]
        self.norms: int = found["norms"]
        self.normalised = [
            None if each is None else _places(each, tensors, found["calls"]) for each in found["convolutions"]
        ]
        self._run: Callable[..., Any] = torch.compile(self.module) if x.is_cuda else self.module

    def serves(self, clips: int) -> bool:
        """Whether it is right for so many attacked clips."""
        if clips not in self._served:
            fits = (clips == 1) == (self._clips == 1)  # a size of 1 is a constant of the graph
            self._served[clips] = fits and all(_holds(guard, clips) for guard in self._guards)
        return self._served[clips]

    @torch.no_grad()
    def __call__(self, tensors: Sequence[Tensor], inputs: tuple) -> Tensor:
        leaves, _ = tree_flatten(inputs)
        given = [leaves[position] for position in self._inputs]
        for index in self._dynamic:
            torch._dynamo.maybe_mark_dynamic(given[index], 0)
        return self._run(*given, *(tensors[position] for position in self._parameters))


def _inputs(
    tape: list, calls: list[Statistics], x: Tensor, rows: Rows, gradients: tuple[Tensor, ...]
) -> tuple:
    return tape, [tuple(call) for call in calls], x, rows.index, gradients


def _tensors_of(model: nn.Module) -> list[Any]:
    """The parameters and buffers of a model, None where one is not there."""
    return [
        tensor
        for module in modules_of(model)
        for tensor in (*module._parameters.values(), *module._buffers.values())
    ]


def _trace(
    function: Callable[..., Tensor], inputs: list[Tensor], dynamic: list[bool]
) -> tuple[GraphModule, list[Any]]:
    """The operations of ``function(*inputs)`` for any first dimension of the inputs that are ``dynamic``, and
    what that dimension has to fulfil: expressions of one symbol."""
    # Here, for these imports take seconds.
    from torch._guards import detect_fake_mode
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

    sizes = ShapeEnv()
    if detect_fake_mode(inputs) is not None:  # counted, not run: for the number of clips that there is
        module = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
    else:
        mode = FakeTensorMode(shape_env=sizes, allow_non_fake_inputs=True)
        fakes = []
        for tensor, any_number in zip(inputs, dynamic, strict=True):
            kinds = [DimDynamic.STATIC] * tensor.dim()
            if any_number:
                kinds[0] = DimDynamic.DYNAMIC
            context: Any = StatelessSymbolicContext(
                dynamic_sizes=kinds, constraint_sizes=[None] * tensor.dim()
            )
            fakes.append(mode.from_tensor(tensor, symbolic_context=context))
        module = make_fx(function, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*fakes)
    module.graph.eliminate_dead_code()
    return module, [guard.expr for guard in sizes.guards]


def _holds(guard: Any, number: int) -> bool:
    import sympy

    return bool(guard.xreplace(dict.fromkeys(guard.free_symbols, sympy.Integer(number))) == sympy.true)


def _lift_parameters(module: GraphModule, tensors: Sequence[Tensor]) -> tuple[list[int], list[int]]:
    """Make parameters, which are constants of a traced graph, its last inputs, and leave out the inputs that
    it does not use. -> the inputs that are left, and the positions of the others among ``tensors``.

    Raises:
        RuntimeError: the graph has another constant.
    """
    graph = module.graph
    position = {id(tensor): index for index, tensor in enumerate(tensors) if tensor is not None}
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    lifted: dict[int, Node] = {}
    constants: set[str] = set()
    last = placeholders[-1]
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        constant = getattr(module, str(node.target))
        place = position.get(id(constant))
        if place is None:
            raise RuntimeError(f"a tensor {list(constant.shape)} is no parameter or buffer of the model")
        if place not in lifted:
            with graph.inserting_after(last):
                last = lifted[place] = graph.placeholder(f"parameter_{place}")
            last.meta = dict(node.meta)
        node.replace_all_uses_with(lifted[place])
        graph.erase_node(node)
        constants.add(str(node.target))
    used = [index for index, node in enumerate(placeholders) if node.users]
    for node in placeholders:
        if not node.users:
            graph.erase_node(node)
    for name in constants:
        delattr(module, name)
    module.recompile()
    return used, list(lifted)


def _places(
    convolution: NormalisedConvolution, tensors: Sequence[Tensor], calls: list[Statistics]
) -> tuple[list[int | None], int]:
    position = {id(tensor): index for index, tensor in enumerate(tensors) if tensor is not None}
    values = (*convolution.parameters, convolution.norm_weight, convolution.shift)
    (call,) = [index for index, each in enumerate(calls) if each is convolution.statistics]
    return [None if value is None else position[id(value)] for value in values], call


def _normalised(
    places: Sequence[tuple[list[int | None], int] | None], tensors: Sequence[Tensor], calls: list[Statistics]
) -> list[NormalisedConvolution | None]:
    found: list[NormalisedConvolution | None] = []
    for place in places:
        if place is None:
            found.append(None)
            continue
        positions, call = place
        weight, bias, norm_weight, shift = (None if p is None else tensors[p] for p in positions)
        assert weight is not None
        found.append(NormalisedConvolution((weight, bias), norm_weight, shift, calls[call]))
    return found
