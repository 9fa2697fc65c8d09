"""Ops on a GPU: torch.compile, opcheck, second-order gradients, and tensors of more than 2^31 elements.

The device fixture runs the other op tests (numbers, gradients, layouts, NaN) on the GPU too.
"""

import pytest
import torch
from reference import cam_gradient as head_reference
from reference import ops as reference
from torch.library import opcheck

from taf_fast import ops

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    """Reset before every case: together they would exceed the recompile limit."""
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
    loss, scores = cam_loss(cam, cam.shape[1], "range")[:2]  # all frames, so that rounding selects none
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
@pytest.mark.parametrize("start", ["x", "clean"])
def test_pgd_step(start, dtype, layout, compiled, generator):
    x, grad, clean = (normal(2, 3, 3, 30, 31, generator=generator, dtype=dtype) for _ in range(3))
    limits = [torch.rand(3, generator=generator).to(DEVICE) for _ in range(2)] + [-1.0, 1.0]
    x = x if start == "x" else None

    def step(x, grad, clean):
        return ops.pgd_step(x, grad, clean, *limits)

    step = torch.compile(step, fullgraph=True) if compiled else step
    laid_out = [None if value is None else layout(value) for value in (x, grad, clean)]
    actual = step(*laid_out)
    on_cpu = [None if value is None else value.cpu() for value in (x, grad, clean)]
    doubled = [None if value is None else value.double() for value in on_cpu]
    exact, plain = (reference.pgd_step(*values, *limits) for values in (doubled, on_cpu))
    assert actual.stride() == torch.empty_like(laid_out[1]).stride()
    reference.assert_as_good_as_pytorch(actual, exact, plain)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("layout", [torch.clone, channels_last, sliced], ids=lambda f: f.__name__)
@pytest.mark.parametrize("T, C, size, masked", [(8, 2048, 7, False), (16, 133, 9, True)])
def test_cam_gradient(T, C, size, masked, layout, compiled, generator):
    """Repeats many clips: the last program of a clip must see the stores of all others, every time."""
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
    """The gradient of the attack's own gradient, in float32 against float64."""
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
    table = torch.rand(4, 3, generator=generator).to(DEVICE)
    opcheck(torch_ops.pgd_step.default, (None, grad, grad, table, []))
    opcheck(torch_ops.pgd_step.default, (grad, grad, grad, table, []))


@pytest.mark.parametrize("layout", [torch.clone, channels_last], ids=lambda f: f.__name__)
def test_more_elements_than_an_int32_counts(layout):
    """The last clip of a bf16 batch comes out as it does alone; limits per channel compute its channels."""
    clips, shape = 1 + 2**31 // (3 * 1024 * 1024), (3, 1024, 1024)
    if torch.cuda.mem_get_info()[0] < 5 * 4 * 2**30:  # three batches at a time, 4 GiB each, with some room
        pytest.skip("too little memory")
    grad, clean = (
        layout(torch.zeros((clips, *shape), dtype=torch.bfloat16, device=DEVICE)) for _ in range(2)
    )
    grad[-1].normal_()
    clean[-1].uniform_()
    step_size = torch.tensor([0.1, 0.2, 0.3], device=DEVICE)
    actual = ops.pgd_step(None, grad, clean, step_size, 0.25, 0.0, 1.0)
    assert torch.equal(actual[-1:], ops.pgd_step(None, grad[-1:], clean[-1:], step_size, 0.25, 0.0, 1.0))
    assert not actual[:-1].any()
