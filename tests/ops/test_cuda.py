"""On a GPU: the kernels as torch.compile and opcheck see them, second order, and tensors past 2^31 elements.

The other op tests run on the GPU too, by their device fixture: numbers, gradients, layouts, NaN.
"""

import pytest
import torch
from reference import cam_gradient as head_reference
from reference import ops as reference
from torch.library import opcheck

from taf_fast import ops

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

DEVICE = "cuda"
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    """Every case compiles anew: together they would pass the limit of recompilations."""
    torch._dynamo.reset()


def normal(*shape, generator, dtype=torch.float32):
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)


def channels_last(x):
    return x.movedim(-3, -1).contiguous().movedim(-1, -3)


def sliced(x):
    return torch.stack((x, torch.full_like(x, torch.nan)), dim=1)[:, 0]


def attack_loss(functions, features, grads):
    frame_cam, cam_loss = functions
    cam = frame_cam(features, grads, relu=True)
    loss, scores = cam_loss(cam, cam.shape[1], "range")[:2]  # all frames: rounding may not choose
    return loss.sum() + scores.square().mean()


def gradients(function, *arguments):
    leaves = [argument.detach().requires_grad_() for argument in arguments]
    value = function(*leaves)
    return value, *torch.autograd.grad(value, leaves)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("layout", [torch.clone, channels_last, sliced], ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_map_and_its_loss(dtype, layout, compiled, generator):
    arguments = [layout(normal(3, 8, 133, 7, 7, generator=generator, dtype=dtype)) for _ in range(2)]

    def ours(features, grads):
        return attack_loss((ops.frame_cam, ops.cam_loss), features, grads)

    def theirs(features, grads):
        return attack_loss((reference.frame_cam, reference.cam_loss), features, grads)

    actual = gradients(torch.compile(ours, fullgraph=True) if compiled else ours, *arguments)
    exact = gradients(theirs, *(argument.cpu().double() for argument in arguments))
    plain = gradients(theirs, *(argument.cpu() for argument in arguments))
    for one, truth, other in zip(actual, exact, plain, strict=True):
        reference.assert_as_good_as_pytorch(one.detach(), truth.detach(), other.detach())


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("layout", [torch.clone, channels_last, sliced], ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("start", ["x", "clean", "frames"])
def test_pgd_step(start, dtype, layout, compiled, generator):
    x, grad, clean = (normal(2, 3, 3, 30, 31, generator=generator, dtype=dtype) for _ in range(3))
    limits = [torch.rand(3, generator=generator).to(DEVICE) for _ in range(2)] + [-1.0, 1.0]
    if start == "frames":
        clean = torch.randint(0, 256, (2, 3, 30, 31, 3), generator=generator, dtype=torch.uint8).to(DEVICE)
        limits += [0.45, 0.2 + limits[0]]
    x = x if start == "x" else None

    def step(x, grad, clean):
        return ops.pgd_step(x, grad, clean, *limits)

    step = torch.compile(step, fullgraph=True) if compiled else step
    laid_out = [
        value if value is None or value.dtype == torch.uint8 else layout(value) for value in (x, grad, clean)
    ]
    actual = step(*laid_out)
    on_cpu = [None if value is None else value.cpu() for value in (x, grad, clean)]
    doubled = [
        value.double() if value is not None and value.is_floating_point() else value for value in on_cpu
    ]
    exact, plain = (reference.pgd_step(*values, *limits) for values in (doubled, on_cpu))
    assert actual.stride() == torch.empty_like(laid_out[1]).stride()
    reference.assert_as_good_as_pytorch(actual, exact, plain)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("layout", [torch.clone, channels_last, sliced], ids=lambda f: f.__name__)
@pytest.mark.parametrize("T, C, size, masked", [(8, 2048, 7, False), (16, 133, 9, True)])
def test_cam_gradient(T, C, size, masked, layout, compiled, generator):
    """Many clips at once, again and again: the last program of a clip must see all others' stores."""
    features = layout(normal(32, T, C, size, size, generator=generator).relu())
    weight = normal(174, C, generator=generator) * 0.1
    mask = (normal(32, T, C, generator=generator) > 0) * 2.0 if masked else None
    targets = torch.randint(0, 174, (32,), generator=generator).to(DEVICE)
    doubled = [None if v is None else v.cpu().double() for v in (features, weight, mask)]
    bias = torch.zeros(174, dtype=torch.float64)
    logits = head_reference.head(doubled[0], doubled[1], bias, doubled[2]).float().to(DEVICE)
    exact, losses, _ = head_reference.cam_gradient(
        doubled[0], doubled[1], bias, targets.cpu(), T, mask=doubled[2]
    )
    run = torch.compile(ops.cam_gradient, fullgraph=True) if compiled else ops.cam_gradient
    scale = exact.abs().amax((1, 2, 3, 4), keepdim=True)
    first = None
    for _ in range(20):
        gradient, loss, _ = run(features, weight, logits, targets, T, mask=mask)
        first = gradient if first is None else first
        assert torch.equal(gradient, first)
    torch.testing.assert_close(loss.cpu().double(), losses, rtol=1e-3, atol=1e-3)
    assert ((gradient.cpu().double() - exact) / scale).abs().max() < 1e-3


@pytest.mark.parametrize("layout", [torch.clone, channels_last, sliced], ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_temporal_shift(dtype, layout, generator):
    x = layout(normal(16, 64, 7, 5, generator=generator, dtype=dtype))
    weights = normal(16, 64, 7, 5, generator=generator, dtype=dtype)

    def run(function, x, weights):
        return gradients(lambda x: (function(x, 8) * weights).sum(), x)[1]

    compiled = torch.compile(lambda x, t: ops.temporal_shift(x, t), fullgraph=True)
    assert torch.equal(compiled(x, 8), reference.temporal_shift(x, 8))
    assert torch.equal(run(compiled, x, weights), run(reference.temporal_shift, x, weights))


def test_second_order(generator):
    """How the attack's own gradient reacts, in float32 against float64."""
    features, grads = (normal(2, 5, 20, 3, 3, generator=generator) for _ in range(2))
    probes = [normal(2, 5, 20, 3, 3, generator=generator) for _ in range(2)]

    def second(functions, features, grads, probes):
        leaves = [argument.detach().requires_grad_() for argument in (features, grads)]
        cam = functions[0](*leaves) + 8
        first = torch.autograd.grad(functions[1](cam, 5)[0].sum(), leaves, create_graph=True)
        total = sum((g * probe).sum() for g, probe in zip(first, probes, strict=True))
        return torch.autograd.grad(total, leaves)

    exact = second(
        (reference.frame_cam, reference.cam_loss),
        *(value.cpu().double() for value in (features, grads)),
        [probe.cpu().double() for probe in probes],
    )
    for actual, truth in zip(
        second((ops.frame_cam, ops.cam_loss), features, grads, probes), exact, strict=True
    ):
        torch.testing.assert_close(
            actual.cpu().double(), truth, rtol=1e-4, atol=1e-5 * truth.abs().max().item()
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype, generator):
    def leaf(*shape, dtype=dtype):
        return normal(*shape, generator=generator, dtype=dtype).requires_grad_()

    torch_ops, full = torch.ops.taf_fast, torch.float32
    opcheck(torch_ops.frame_cam.default, (leaf(2, 3, 4, 5, 3), leaf(2, 3, 4, dtype=full)))
    opcheck(torch_ops.cam_loss.default, (leaf(2, 5, 3, 4), 3, False, 1e-6))
    opcheck(torch_ops.temporal_shift.default, (leaf(6, 8, 3, 2), 3, 4, False))
    grad = leaf(2, 3, 4, 5).detach()
    frames = torch.randint(0, 256, (2, 4, 5, 3), generator=generator, dtype=torch.uint8).to(DEVICE)
    table = torch.rand(6, 3, generator=generator).to(DEVICE) + 0.1
    opcheck(torch_ops.pgd_step.default, (None, grad, frames, table, []))
    opcheck(torch_ops.pgd_step.default, (grad, grad, grad, table[:4], []))


@pytest.mark.parametrize("layout", [torch.clone, channels_last], ids=lambda f: f.__name__)
def test_more_elements_than_an_int32_counts(layout):
    """Decoded frames and a bf16 gradient: the last clip comes out as it does alone."""
    clips, shape = 1 + 2**31 // (3 * 1024 * 1024), (3, 1024, 1024)
    if torch.cuda.mem_get_info()[0] < 8 * 5 * 2**30:
        pytest.skip("too little memory")
    frames = torch.zeros((clips, 1024, 1024, 3), dtype=torch.uint8, device=DEVICE)
    frames[-1].random_(0, 256)
    grad = layout(torch.zeros((1, *shape), dtype=torch.bfloat16, device=DEVICE)).repeat(clips, 1, 1, 1)
    grad = layout(grad)
    grad[-1].normal_()
    arguments = 0.1, 0.2, 0.0, 1.0, 0.0, 1.0
    actual = ops.pgd_step(None, grad, frames, *arguments)
    assert torch.equal(actual[-1:], ops.pgd_step(None, grad[-1:], frames[-1:], *arguments))
    assert not actual[:-1].any()
