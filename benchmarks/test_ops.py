"""Each op beside the plain eager PyTorch anyone would write, in the same run.

    pytest benchmarks/test_ops.py --benchmark-sort=name

One group a case, so that the table's relative column is the ratio. On a CPU the op is PyTorch too, and the
sizes are small: it only shows that nothing is lost. With a GPU the sizes are those of a training step.
`gigabytes_per_second` counts the bytes an ideal kernel moves. Timings never decide a test.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from taf_fast import ops

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
DTYPES = [torch.bfloat16, torch.float32] if CUDA else [torch.float32]
CLIPS, FRAMES, CHANNELS, PICTURE = (16, 8, 2048, 224) if CUDA else (4, 8, 256, 56)
STAGES = [(256, 56), (1024, 14)] if CUDA else [(64, 14)]
EPSILON, STEP = 64 / 255, 32 / 255


@pytest.fixture(autouse=True)
def one_thread():
    """Threads waiting for each other on a busy machine would be most of a small op's time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random(*shape: int, dtype: torch.dtype, channels_last: bool = False) -> Tensor:
    x = torch.randn(shape, device=DEVICE, dtype=dtype)
    return x.movedim(-3, -1).contiguous().movedim(-1, -3) if channels_last else x


def measure(benchmark, group: str, moved: list[Tensor], function: Callable, *arguments) -> None:
    def run():
        result = function(*arguments)
        if CUDA:
            torch.cuda.synchronize()
        return result

    run()
    benchmark.group = group
    benchmark(run)
    if benchmark.stats is not None:  # with --benchmark-disable there are none
        gigabytes = sum(x.numel() * x.element_size() for x in moved) / 1e9
        benchmark.extra_info["gigabytes_per_second"] = gigabytes / benchmark.stats.stats.median


def eager_frame_cam(features: Tensor, grads: Tensor) -> Tensor:
    return (grads.mean((3, 4), keepdim=True) * features).sum(2)


def eager_cam_loss(cam: Tensor, num_frames: int) -> tuple[Tensor, Tensor, Tensor]:
    minimum, maximum = cam.amin((1, 2, 3), keepdim=True), cam.amax((1, 2, 3), keepdim=True)
    scores = ((cam - minimum) / maximum).sum((2, 3))
    lowest, frames = scores.topk(num_frames, dim=1, largest=False)
    return lowest.mean(1), scores, frames


def eager_pgd_step(x, grad, clean, step_size, epsilon, lower, upper) -> Tensor:
    y = x + step_size * grad.sign()
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


def against(eager: Callable, op: Callable):
    return pytest.mark.parametrize("function", [eager, op], ids=["eager", "taf_fast"])


layouts = pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@against(eager_frame_cam, ops.frame_cam)
@layouts
@dtypes
def test_frame_cam(benchmark, function, channels_last, dtype):
    features, grads = (
        random(CLIPS, FRAMES, CHANNELS, 7, 7, dtype=dtype, channels_last=channels_last) for _ in range(2)
    )
    group = f"frame_cam {dtype} channels_last={channels_last}"
    measure(benchmark, group, [features, grads], function, features, grads)


@against(eager_frame_cam, ops.frame_cam)
@layouts
@dtypes
def test_frame_cam_backward(benchmark, function, channels_last, dtype):
    features, grads = (
        random(CLIPS, FRAMES, CHANNELS, 7, 7, dtype=dtype, channels_last=channels_last).requires_grad_()
        for _ in range(2)
    )
    cam = function(features, grads)

    def backward():
        return torch.autograd.grad(cam, (features, grads), torch.ones_like(cam), retain_graph=True)

    group = f"frame_cam backward {dtype} channels_last={channels_last}"
    measure(benchmark, group, [features, features, grads], backward)


@against(eager_cam_loss, ops.cam_loss)
def test_cam_loss(benchmark, function):
    cam = random(CLIPS, FRAMES, 7, 7, dtype=torch.float32)
    measure(benchmark, "cam_loss", [cam], function, cam, FRAMES // 2)


@against(eager_cam_loss, ops.cam_loss)
def test_cam_loss_backward(benchmark, function):
    cam = random(CLIPS, FRAMES, 7, 7, dtype=torch.float32).requires_grad_()
    loss = function(cam, FRAMES // 2)[0].sum()
    measure(
        benchmark,
        "cam_loss backward",
        [cam, cam],
        lambda: torch.autograd.grad(loss, cam, retain_graph=True),
    )


@against(eager_pgd_step, ops.pgd_step)
@pytest.mark.parametrize("per_channel", [False, True], ids=["numbers", "per_channel"])
@dtypes
def test_pgd_step(benchmark, function, per_channel, dtype):
    x, grad, clean = (random(CLIPS, FRAMES, 3, PICTURE, PICTURE, dtype=dtype) for _ in range(3))
    bounds: list = [STEP, EPSILON, 0.0, 1.0]
    if per_channel:
        shape = (3,) if function is ops.pgd_step else (3, 1, 1)
        bounds = [torch.full(shape, value, device=DEVICE, dtype=dtype) for value in bounds]
    group = f"pgd_step {dtype} {'per channel' if per_channel else 'numbers'}"
    measure(benchmark, group, [x, grad, clean, x], function, x, grad, clean, *bounds)


@against(eager_temporal_shift, ops.temporal_shift)
@pytest.mark.parametrize("channels, size", STAGES)
@layouts
@dtypes
def test_temporal_shift(benchmark, function, channels_last, channels, size, dtype):
    x = random(CLIPS * FRAMES, channels, size, size, dtype=dtype, channels_last=channels_last)
    group = f"temporal_shift {channels}x{size}x{size} {dtype} channels_last={channels_last}"
    measure(benchmark, group, [x, x], function, x, FRAMES)
