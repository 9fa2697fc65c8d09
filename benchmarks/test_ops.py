"""Each op compared with its usual alternatives, in the same run and group.

    pytest benchmarks/test_ops.py --benchmark-json=run.json && python benchmarks/report.py run.json

A group has four variants: a copy of the number of bytes that an ideal kernel would move, plain eager PyTorch,
the same under torch.compile, and the op. Each result is compared with the float64 reference before it is
timed: a wrong result fails its test and is not timed. Timings never decide a test.

On a CPU the op runs as PyTorch too and the sizes are small, so the benchmark only shows that the op loses
nothing. On CUDA the times are device times between events, with the cache cleared before every call; they are
in extra_info, while pytest-benchmark's own table shows wall time including launches.
"""

import functools
from collections.abc import Callable

import pytest
import torch
import torch._functorch.config
import torch.nn.functional as F
from reference import cam_gradient as head_reference
from reference import ops as reference
from torch import Tensor

from taf_fast import ops
from taf_fast.bench.measure import percentiles

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
DTYPES = [torch.bfloat16, torch.float32] if CUDA else [torch.float32]
SIZES = [(B, T) for B in (8, 32, 64) for T in (8, 16)] if CUDA else [(4, 8)]
CLASSES = 174
CHANNELS, PICTURE = (2048, 224) if CUDA else (256, 56)
STAGES = [(256, 56), (1024, 14)] if CUDA else [(64, 14)]
CALLS, WARM_UP = 100, 10  # for each variant on CUDA
EPSILON, STEP = 64 / 255, 32 / 255

medians: dict[tuple[str, str], float] = {}  # seconds by (group, variant)


@pytest.fixture(autouse=True)
def one_thread():
    """Use one thread: on a busy machine, threads that wait for each other would dominate a small op's
    time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["copy", "eager", "compiled", "taf_fast"])
def variant(request) -> str:
    return request.param


def random(*shape: int, dtype: torch.dtype, channels_last: bool = False) -> Tensor:
    x = torch.randn(shape, device=DEVICE, dtype=dtype)
    return x.movedim(-3, -1).contiguous().movedim(-1, -3) if channels_last else x


def eager_frame_cam(features: Tensor, grads: Tensor) -> Tensor:
    return (grads.mean((3, 4), keepdim=True) * features).sum(2)


def eager_cam_loss(cam: Tensor, num_frames: int) -> tuple[Tensor, Tensor]:
    minimum, maximum = cam.amin((1, 2, 3), keepdim=True), cam.amax((1, 2, 3), keepdim=True)
    scores = ((cam - minimum) / maximum).sum((2, 3))
    return scores.topk(num_frames, dim=1, largest=False)[0].mean(1), scores


def eager_cam_gradient(features: Tensor, logits: Tensor) -> Tensor:
    """Double backward through the head, whose graph needs a forward first."""
    leaf = features.detach().requires_grad_()
    logits = F.linear(leaf.mean((3, 4)), head_weight(features)).mean(1)
    cross_entropy = F.cross_entropy(logits, first_class(logits), reduction="sum")
    (grads,) = torch.autograd.grad(cross_entropy, leaf, create_graph=True)
    loss, _ = eager_cam_loss(eager_frame_cam(leaf, grads), features.shape[1])
    return torch.autograd.grad(loss.sum(), leaf)[0]


def op_cam_gradient(features: Tensor, logits: Tensor) -> Tensor:
    targets, frames = first_class(logits), features.shape[1]
    return ops.cam_gradient(features, head_weight(features), logits, targets, frames)[0]


def reference_cam_gradient(features: Tensor, logits: Tensor) -> Tensor:
    features, targets = features.cpu(), first_class(logits).cpu()
    weight = head_weight(features)
    bias = torch.zeros(len(weight), dtype=features.dtype)
    return head_reference.cam_gradient(features, weight, bias, targets, features.shape[1])[0]


def head_weight(like: Tensor) -> Tensor:
    """Return the weight [CLASSES,C] of one linear layer that all variants share."""
    return linear_layer(like.shape[2], like.device, like.dtype)


@functools.cache
def linear_layer(channels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    values = torch.randn(CLASSES, channels, generator=torch.Generator().manual_seed(0)) * 0.05
    return values.to(device, dtype)


def first_class(logits: Tensor) -> Tensor:
    return torch.zeros(len(logits), dtype=torch.int64, device=logits.device)


def eager_pgd_step(x, grad, clean, step_size, epsilon, lower, upper) -> Tensor:
    y = (clean if x is None else x) + step_size * grad.sign()
    y = torch.minimum(torch.maximum(y, clean - epsilon), clean + epsilon)
    return y.clamp(lower, upper)


def eager_temporal_shift(x: Tensor, num_segments: int, fold_div: int = 8) -> Tensor:
    clips = x.unflatten(0, (-1, num_segments))
    fold = x.shape[1] // fold_div
    out = torch.zeros_like(clips)
    out[:, :-1, :fold] = clips[:, 1:, :fold]
    out[:, 1:, fold : 2 * fold] = clips[:, :-1, fold : 2 * fold]
    out[:, :, 2 * fold :] = clips[:, :, 2 * fold :]
    return out.flatten(0, 1)


FUNCTIONS = {  # op, eager, reference
    "frame_cam": (ops.frame_cam, eager_frame_cam, reference.frame_cam),
    "cam_loss": (lambda *a: ops.cam_loss(*a)[:2], eager_cam_loss, lambda *a: reference.cam_loss(*a)[:2]),
    "cam_gradient": (op_cam_gradient, eager_cam_gradient, reference_cam_gradient),
    "pgd_step": (ops.pgd_step, eager_pgd_step, reference.pgd_step),
    "temporal_shift": (ops.temporal_shift, eager_temporal_shift, reference.temporal_shift),
}


def outputs(function: Callable, arguments: tuple, backward: bool) -> Callable[[], tuple[Tensor, ...]]:
    """Return the timed call: the forward, or the gradient of the sum of the first output."""
    if not backward:

        def forward():
            result = function(*arguments)
            return result if isinstance(result, tuple) else (result,)

        return forward
    leaves = [
        argument.detach().requires_grad_() if isinstance(argument, Tensor) else argument
        for argument in arguments
    ]
    result = function(*leaves)
    result = result[0] if isinstance(result, tuple) else result
    differentiable = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    one = torch.ones_like(result)
    return lambda: torch.autograd.grad(result, differentiable, one, retain_graph=True)


def ends(value, clips: int):
    """Return the first and the last clip of a tensor; return other values unchanged."""
    if not isinstance(value, Tensor) or value.dim() < 2:
        return value
    return value.unflatten(0, (clips, -1))[[0, -1]].flatten(0, 1)


def check(variant: str, name: str, results: tuple, arguments: tuple, clips: int, backward: bool) -> None:
    _, eager, exact_function = FUNCTIONS[name]
    few = tuple(ends(argument, clips) for argument in arguments)
    doubled = tuple(
        argument.double() if isinstance(argument, Tensor) and argument.is_floating_point() else argument
        for argument in few
    )
    exact = outputs(exact_function, doubled, backward)()
    plain = outputs(eager, few, backward)()
    for actual, truth, theirs in zip(results, exact, plain, strict=True):
        actual, truth = ends(actual, clips) if actual.dim() > 1 else actual[[0, -1]], truth.detach().cpu()
        if variant == "taf_fast":
            reference.assert_as_good_as_pytorch(actual.detach(), truth, theirs.detach())
        else:
            allowed = (0.05 if actual.dtype == torch.bfloat16 else 1e-4) * truth.abs().max()
            assert (actual.cpu().double() - truth).abs().max() <= allowed


def device_seconds(run: Callable) -> list[float]:
    """Time a call on the device with a cold cache.

    Before each call, reading a buffer several times the size of the L2 cache evicts the operands and leaves
    no lines to write back; it also keeps the device busy while the call is launched.
    """
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    flush = torch.zeros(max(4 * cache, 2**29) // 4, device=DEVICE)
    for _ in range(WARM_UP):
        run()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(CALLS)]
    for start, end in events:
        flush.sum()
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in events]


def measure(benchmark, variant, name, label, size, arguments: tuple, moved: list, backward=False) -> None:
    """Check and time one variant; ``moved`` lists the tensors that an ideal kernel reads and writes."""
    clips, frames = size
    op, eager, _ = FUNCTIONS[name]
    nbytes = sum(x.numel() * x.element_size() for x in moved)
    if variant == "copy":
        # Random bytes: copying zeros takes a GPU less power and may therefore be faster.
        source = torch.randint(256, (nbytes // 2,), dtype=torch.uint8, device=DEVICE)
        target = torch.empty_like(source)

        def run():
            return target.copy_(source)

    else:
        function = op if variant == "taf_fast" else eager
        if variant == "compiled":
            torch._dynamo.reset()  # otherwise the second size would be compiled as dynamic
            function = torch.compile(eager, fullgraph=True, dynamic=False)
        # The backward runs many times on one graph, so it must not donate its buffers.
        with torch._functorch.config.patch(donated_buffer=False):
            run = outputs(function, arguments, backward)
            check(variant, name, run(), arguments, clips, backward)

    def run_to_the_end():
        run()
        if CUDA:
            torch.cuda.synchronize()

    group = f"{name}{' backward' if backward else ''} B={clips} T={frames} {label}"
    benchmark.group = group
    if CUDA:
        times = device_seconds(run)
        benchmark.pedantic(run_to_the_end, rounds=10, warmup_rounds=1)
    else:
        benchmark(run_to_the_end)
        if benchmark.stats is None:  # with --benchmark-disable
            return
        times = benchmark.stats.stats.data
    microseconds = percentiles(1e6 * seconds for seconds in times)
    p50 = medians[group, variant] = microseconds["p50"] / 1e6
    benchmark.extra_info |= {
        "op": name,
        "clips": clips,
        "variant": variant,
        "bytes": nbytes,
        "gigabytes_per_second": nbytes / 1e9 / p50,
        "microseconds": microseconds,
    }
    # Speed relative to the other variants; a variant that failed its check has no time.
    ratios = {
        f"against_{other}": medians[group, other] / p50
        for other in ("copy", "eager", "compiled")
        if (group, other) in medians
    }
    benchmark.extra_info |= ratios


sizes = pytest.mark.parametrize("size", SIZES, ids=[f"B{B}-T{T}" for B, T in SIZES])
layouts = pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp32"][-len(DTYPES) :])
directions = pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])


def label(dtype: torch.dtype, channels_last: bool) -> str:
    return f"{str(dtype).removeprefix('torch.')} {'channels_last' if channels_last else 'contiguous'}"


@sizes
@dtypes
@layouts
@directions
def test_frame_cam(benchmark, size, dtype, channels_last, backward, variant):
    features, grads = (
        random(*size, CHANNELS, 7, 7, dtype=dtype, channels_last=channels_last) for _ in range(2)
    )
    moved = [features, grads] + [features, grads] * backward
    name = label(dtype, channels_last)
    measure(benchmark, variant, "frame_cam", name, size, (features, grads), moved, backward)


@sizes
@directions
def test_cam_loss(benchmark, size, backward, variant):
    cam = random(*size, 7, 7, dtype=torch.float32)  # what frame_cam returns for every dtype timed here
    moved = [cam] + [cam] * backward
    measure(benchmark, variant, "cam_loss", "float32", size, (cam, size[1] // 2), moved, backward)


@sizes
@dtypes
@layouts
def test_cam_gradient(benchmark, size, dtype, channels_last, variant):
    if variant == "compiled":
        pytest.skip("double backward does not compile")
    features = random(*size, CHANNELS, 7, 7, dtype=dtype, channels_last=channels_last).relu()
    logits = F.linear(features.mean((3, 4)), head_weight(features)).mean(1)
    name = label(dtype, channels_last)
    measure(benchmark, variant, "cam_gradient", name, size, (features, logits), [features, features])


@sizes
@dtypes
@pytest.mark.parametrize("start", ["x", "clean"])
def test_pgd_step(benchmark, size, dtype, start, variant):
    """A first step, which starts from clean, and a later one; the limits are numbers."""
    x, grad, clean = (random(*size, 3, PICTURE, PICTURE, dtype=dtype) for _ in range(3))
    arguments = (x if start == "x" else None, grad, clean, STEP, EPSILON, 0.0, 1.0)
    moved = [grad, clean, grad] + [x] * (start == "x")
    name = f"{str(dtype).removeprefix('torch.')} from {start}"
    measure(benchmark, variant, "pgd_step", name, size, arguments, moved)


@sizes
@dtypes
@layouts
@directions
@pytest.mark.parametrize("channels, picture", STAGES)
def test_temporal_shift(benchmark, size, dtype, channels_last, channels, picture, backward, variant):
    clips, frames = size
    x = random(clips * frames, channels, picture, picture, dtype=dtype, channels_last=channels_last)
    name = f"{channels}x{picture}x{picture} {label(dtype, channels_last)}"
    # The gradient of the sum reads ones of the size of x.
    measure(benchmark, variant, "temporal_shift", name, size, (x, frames), [x, x], backward)
