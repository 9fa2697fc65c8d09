"""Count the kernels of a compiled step on a GPU without one: those in the code that Inductor writes for it.

The graphs of torch.compile are captured on fake tensors, their tensors are then said to be on a GPU, and
Inductor writes the code that it would write for an H100. Nothing of it runs. This takes many private parts of
PyTorch, and a C++ compiler for a device guard that does nothing, which builds without CUDA lack.
"""

import contextlib
import ctypes
import dataclasses
import functools
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from taf_fast.augment.replay import Recording
from taf_fast.augment.replay_graph import ReplayGraph
from taf_fast.augment.rows import ALL_ROWS, Rows
from taf_fast.bench.counts import REPLAY, Launch, StepCounts, Wait, fake_model, kernel_bytes
from taf_fast.errors import RunError
from taf_fast.models.batch_counts import counted_at_once
from taf_fast.models.contract import ModelView, StagedView, view_of
from taf_fast.models.dual_batch_norm import adversarial_path
from taf_fast.precision import autocast

#: The release whose private parts this is written for.
RELEASE = "2.13"
_OPS = ("cam_gradient", "cam_loss", "frame_cam", "pgd_step", "temporal_shift")
_GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace { C10_REGISTER_GUARD_IMPL(CUDA, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>); }
"""


class Kernels(NamedTuple):
    """What a graph launches: ``triton`` kernels that Inductor writes, kernels of this package's ``own``, and
    ``matrix`` calls, convolutions and matrix products; ``bytes`` that all of them are handed; ``launches``,
    each of them in order."""

    triton: int
    own: int
    matrix: int
    bytes: float
    launches: tuple[Launch, ...]


def count_compiled(
    name: str,
    num_segments: int = 8,
    size: int = 224,
    batch_size: int = 30,
    precision: str = "bfloat16",
    attacked: int | None = None,
) -> dict[str, Kernels]:
    """The kernels of each graph of a compiled step, plain or, with ``attacked`` clips, TAF; arguments as for
    :func:`taf_fast.bench.counts.count_step`.

    Raises:
        RunError: another release of PyTorch than :data:`RELEASE`, or no C++ compiler.
    """
    if not torch.__version__.startswith(f"{RELEASE}."):
        raise RunError(f"compiled steps are counted with torch {RELEASE}, not with {torch.__version__}")
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    model = fake_model(mode, name, num_segments, dual=attacked is not None)
    with mode, autocast(torch.device("cpu"), precision), _operations_of_a_gpu():
        view: Any = view_of(model)
        x = torch.empty(batch_size, num_segments, size, size, 3).movedim(-1, 2)
        if attacked is None:
            graphs = _training_graphs("clean", view, x)
        else:
            with Recording():
                graphs = _training_graphs("clean", view, x)
            if attacked:
                graphs[REPLAY] = _replay_graph(view, x, attacked)
                with adversarial_path(model):
                    graphs |= _training_graphs("adversarial", view, x[:attacked])
    with _on_a_gpu(), _operations_of_a_gpu():
        return {phase: _kernels(graph, phase) for phase, graph in graphs.items()}


def total(graphs: dict[str, Kernels]) -> Kernels:
    """The sums of all graphs."""
    each = graphs.values()
    return Kernels(
        sum(kernels.triton for kernels in each),
        sum(kernels.own for kernels in each),
        sum(kernels.matrix for kernels in each),
        sum(kernels.bytes for kernels in each),
        tuple(launch for kernels in each for launch in kernels.launches),
    )


def with_graphs(eager: StepCounts, graphs: dict[str, Kernels]) -> list[Launch | Wait]:
    """The events of a step in whose phases the compiled graphs run in place of the eager operations."""
    events: list[Launch | Wait] = []
    done, earlier = 0, [0]  # launches of the compiled step, after each of the eager one
    replaced: set[str] = set()
    for event in eager.events:
        if isinstance(event, Wait):
            events.append(Wait(event.phase, earlier[event.launches]))
            continue
        graph = graphs.get(event.phase)
        if graph is None:
            launches: tuple[Launch, ...] = (event,)
        else:
            launches = () if event.phase in replaced else graph.launches
            replaced.add(event.phase)
        events += launches
        done += len(launches)
        earlier.append(done)
    return events


class _Captured(Exception):
    pass


def _training_graphs(name: str, view: ModelView, x: Tensor) -> dict[str, GraphModule]:
    """The forward and the backward as Inductor gets them."""
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._guards import detect_fake_mode
    from torch._inductor import compile_fx
    from torch._inductor.virtualized import V

    found: dict[str, GraphModule] = {}

    def partition(joint, inputs, **options):
        with V.set_fake_mode(detect_fake_mode(inputs)):
            compile_fx._recursive_joint_graph_passes(joint)
        graphs = min_cut_rematerialization_partition(joint, inputs, compiler="inductor", **options)
        found.update(zip((f"{name} forward", f"{name} backward"), graphs, strict=True))
        raise _Captured

    with counted_at_once(view.model):
        _capture(view.forward, (x,), found, partition_fn=partition)
    return found


def _replay_graph(view: StagedView, x: Tensor, attacked: int) -> GraphModule:
    recording = Recording()
    with torch.no_grad(), recording:
        stages = view.forward(x).stages
    rows = ALL_ROWS if attacked == len(x) else Rows(torch.empty(attacked, dtype=torch.int64))
    chosen = tuple(stage[:attacked] for stage in stages or ())
    traced = ReplayGraph(view, recording, x, rows, chosen).module
    inputs = [node.meta["val"].detach() for node in traced.graph.nodes if node.op == "placeholder"]
    found: dict[str, GraphModule] = {}

    def compiler(graph, _):
        found["replay"] = graph
        raise _Captured

    with torch.no_grad():
        _capture(traced, inputs, found, inference_compiler=compiler)
    return found["replay"]


def _capture(function: Callable, inputs: Any, found: dict, **options: Any) -> None:
    from torch._dynamo.backends.common import aot_autograd
    from torch._inductor.decomposition import select_decomp_table

    backend = aot_autograd(
        fw_compiler=lambda graph, _: graph,
        decompositions=select_decomp_table(),
        keep_inference_input_mutations=True,
        **options,
    )
    torch._dynamo.reset()
    try:
        torch.compile(function, backend=backend, fullgraph=True)(*inputs)
    except Exception:  # wrapped by torch.compile
        if not found:
            raise


def _kernels(graph: GraphModule, phase: str) -> Kernels:
    from torch._inductor import compile_fx
    from torch._inductor.graph import GraphLowering
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    for node in graph.graph.nodes:
        for name in ("args", "kwargs"):
            setattr(node, name, torch.fx.node.map_aggregate(getattr(node, name), _on_gpu))
    graph.recompile()
    mode = FakeTensorMode(shape_env=ShapeEnv())
    with mode:
        values = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
        inputs = [
            torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda:0")
            if isinstance(value, Tensor)
            else value
            for value in values
        ]
    FakeTensorProp(graph, mode).propagate_dont_convert_inputs(*inputs)
    found: dict[str, Any] = {}
    codegen = GraphLowering.codegen

    def keep(lowering):
        written = codegen(lowering)[0]
        found["code"] = getattr(written, "value", written)
        nodes = lowering.scheduler.nodes
        found["bytes"] = sum(node.get_read_write_buffers_sizes() for node in nodes)
        found["launches"] = tuple(filter(None, (_launch(node, phase) for node in nodes)))
        raise _Captured

    with mock.patch.object(GraphLowering, "codegen", keep):
        try:
            compile_fx.compile_fx_inner(
                graph,
                inputs,
                is_backward=phase.endswith("backward"),
                cudagraphs=mock.MagicMock(value=False),
                graph_id=0,
            )
        except Exception:  # wrapped by Inductor
            if "code" not in found:
                raise
    body = found["code"].split("def call(", 1)[1].split("def benchmark_compiled_module", 1)[0]
    launched = re.findall(r"(\w+)\.run\(", body)
    triton = sum(kernel.startswith("triton_") for kernel in launched)
    matrix = len(re.findall(r"(?:extern_kernels\.\w+|convolution\w*\.default|mm\.\w+)\(", body))
    return Kernels(triton, len(launched) - triton, matrix, float(found["bytes"]), found["launches"])


def _launch(node: Any, phase: str) -> Launch | None:
    """What a node of Inductor's schedule launches."""
    from torch._inductor.ir import MultiOutput

    moved, flops = float(node.get_read_write_buffers_sizes()), 0.0
    if isinstance(node.node, MultiOutput) or not moved:
        return None
    for operation in node.node.origins if node.is_extern() else ():
        packet = getattr(operation.target, "overloadpacket", None)
        if (counted := flop_registry.get(packet)) is not None:
            args, kwargs = torch.fx.map_arg((operation.args, operation.kwargs), lambda of: of.meta["val"])
            out = operation.meta["val"]
            flops = float(counted(*args, **kwargs, out_val=out))
            read, written = (
                [leaf for leaf in tree_leaves(of) if isinstance(leaf, Tensor)] for of in (args, out)
            )
            # Less than what it is handed: a gradient of a convolution does not read the input's values.
            moved = sum(kernel_bytes(operation.target._schema.name.split("::")[1], args, read, written))
    return Launch(phase, node.get_name(), flops > 0, flops, moved)


def _on_gpu(value: Any) -> Any:
    return torch.device("cuda:0") if isinstance(value, torch.device) else value


@dataclasses.dataclass(frozen=True)
class _Properties:
    """Of an H100, as torch.cuda gives them."""

    name: str = "NVIDIA H100"
    major: int = 9
    minor: int = 0
    multi_processor_count: int = 132
    total_memory: int = 80 * 2**30
    regs_per_multiprocessor: int = 65536
    max_threads_per_multi_processor: int = 2048
    max_threads_per_block: int = 1024
    warp_size: int = 32
    shared_memory_per_multiprocessor: int = 233472
    shared_memory_per_block: int = 49152
    shared_memory_per_block_optin: int = 232448
    L2_cache_size: int = 50 * 2**20
    gcnArchName: str = ""  # noqa: N815


class _Driver:
    """Triton's driver of a GPU that is not there."""

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_device_interface(self):
        return torch.cuda

    def get_active_torch_device(self):
        return torch.device("cuda", 0)

    @staticmethod
    def is_active():
        return True


@contextlib.contextmanager
def _operations_of_a_gpu() -> Iterator[None]:
    """The operations of this package are their Triton kernels."""
    import triton

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(triton.runtime.driver, "_active", _Driver()))
        for op in _OPS:
            target = f"taf_fast.ops.{op}.runs_on_triton"
            stack.enter_context(mock.patch(target, lambda x: x.dtype != torch.float64))
        # Without cuDNN, fake convolutions give their results contiguous, which Inductor then copies.
        stack.enter_context(mock.patch("torch._C._conv_determine_backend_memory_format", _channels_last))
        yield


def _channels_last(x: Tensor, *_: Any) -> torch.memory_format:
    return torch.channels_last if x.dim() == 4 else torch.contiguous_format


@contextlib.contextmanager
def _on_a_gpu() -> Iterator[None]:
    """PyTorch and Inductor find an H100."""
    from torch._inductor import config
    from torch._inductor.runtime.hints import DeviceProperties

    _load_guard()
    properties = _Properties()
    given: dict[str, Any] = {"type": "cuda", "index": 0, "cc": 90} | dataclasses.asdict(properties)
    of_device = DeviceProperties(**{name: given[name] for name in DeviceProperties._fields})
    found: dict[str, Any] = {
        "get_device_properties": properties,
        "get_device_capability": (9, 0),
        "current_device": 0,
        "is_available": True,
        "device_count": 1,
        "get_rng_state": torch.zeros(1),
        "_exchange_device": -1,
        "_maybe_exchange_device": -1,
        **dict.fromkeys(("_lazy_init", "synchronize", "set_rng_state")),
    }
    with contextlib.ExitStack() as stack:
        for name, value in found.items():
            stack.enter_context(mock.patch(f"torch.cuda.{name}", return_value=value))
        stack.enter_context(mock.patch("torch._inductor.scheduler.has_triton", return_value=True))
        stack.enter_context(mock.patch.object(DeviceProperties, "create", staticmethod(lambda _: of_device)))
        stack.enter_context(config.patch(fx_graph_cache=False, compile_threads=1))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(mock.patch.dict(os.environ, {"TORCHINDUCTOR_CACHE_DIR": folder}))
        yield


@functools.cache
def _load_guard() -> None:
    """A device guard for "cuda" that does nothing, once for this process."""
    root = Path(torch.__file__).parent
    includes = [f"-I{root / 'include' / folder}" for folder in (".", "torch/csrc/api/include")]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "guard.so"
        command: list[Any] = [
            "c++",
            "-shared",
            "-fPIC",
            "-std=c++20",
            *includes,
            "-x",
            "c++",
            "-",
            "-o",
            library,
        ]
        try:
            subprocess.run(
                [*command, f"-L{root / 'lib'}", "-lc10"],
                input=_GUARD,
                text=True,
                capture_output=True,
                check=True,
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise RunError(f"compiled steps are counted with a C++ compiler, c++: {error}") from None
        ctypes.CDLL(str(library))
