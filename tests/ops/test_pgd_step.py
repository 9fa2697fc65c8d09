"""pgd_step: numbers, bounds, layouts and errors. test_interpreter.py runs them interpreted as well."""

import math

import pytest
import torch
from reference import ops as reference
from torch.library import opcheck

from taf_fast import ops
from taf_fast.kernels import common
from taf_fast.kernels import pgd_step as kernels

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = [
    (2, 3, 3, 5, 7),  # odd sizes
    (3, 1, 1),
    (2, 1, 4, 3, 3),
    (0, 2, 3, 4, 4),
    (1, 2, 3, 30, 30),  # more than one block
]


def inputs(shape, dtype, generator, device="cpu"):
    """x inside and outside the ball around clean; a gradient with zeros and a NaN."""
    clean = torch.rand(shape, generator=generator, dtype=torch.float64)
    x = clean + 0.4 * (torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5)
    grad = torch.randn(shape, generator=generator, dtype=torch.float64)
    grad[grad.abs() < 0.1] = 0
    grad.view(-1)[:1] = math.nan
    return [tensor.to(device, dtype) for tensor in (x, grad, clean)]


def per_channel(shape, generator, device, scale):
    return (scale * torch.rand(shape[-3], generator=generator)).to(device)


def limits(kind, shape, generator, device):
    if kind == "numbers":
        return 0.1, 0.15, 0.0, 1.0
    if kind == "unbounded":
        return 0.1, 0.15, None, None
    if kind == "mixed":
        return 0.1, per_channel(shape, generator, device, 0.2), None, 1.0
    step, epsilon, lower = (per_channel(shape, generator, device, scale) for scale in (0.2, 0.2, 0.3))
    return step, epsilon, lower, lower + 0.5


@pytest.mark.parametrize("kind", ["numbers", "unbounded", "mixed", "tensors"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_numbers(shape, dtype, kind, generator, device):
    x, grad, clean = inputs(shape, dtype, generator, device)
    bounds = limits(kind, shape, generator, device)
    actual = ops.pgd_step(x, grad, clean, *bounds)
    exact = reference.pgd_step(*(tensor.cpu().double() for tensor in (x, grad, clean)), *bounds)
    plain = reference.pgd_step(x.cpu(), grad.cpu(), clean.cpu(), *bounds)
    assert actual.dtype == dtype
    reference.assert_as_good_as_pytorch(actual, exact, plain)


@pytest.mark.parametrize("elements", [1, 40, 120])
@pytest.mark.parametrize("from_clean", [False, True])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("shape", [(3, 5, 3, 2, 4), (5, 3, 2, 4), (2, 2, 3, 3, 2, 2), (0, 3, 3, 2, 2)])
def test_the_size_of_the_parts_does_not_matter(shape, wide, from_clean, elements, generator, monkeypatch):
    x, grad, clean = inputs(shape, torch.float32, generator)
    per_clip = [shape[0], *[1] * (len(shape) - 4), 3, 1, 1]
    step_size = torch.rand(per_clip if wide else 3, generator=generator)
    start = None if from_clean else x
    whole = ops.pgd_step(start, grad, clean, step_size, 0.15, 0.0, 1.0)
    monkeypatch.setattr(kernels, "CACHED", elements)
    assert torch.equal(ops.pgd_step(start, grad, clean, step_size, 0.15, 0.0, 1.0), whole)


@pytest.mark.parametrize("as_tensors", [False, True])
@pytest.mark.parametrize("from_clean", [False, True])
def test_an_infinite_step_goes_to_the_border_of_the_ball(from_clean, as_tensors, device):
    clean = torch.tensor([0.5, 0.25, 0.5, 0.875], device=device).view(1, 1, 2, 2)
    grad = torch.tensor([1.0, -2.0, 0.0, 3.0], device=device).view(1, 1, 2, 2)
    sizes = [torch.full((1,), size, device=device) if as_tensors else size for size in (math.inf, 0.25)]
    actual = ops.pgd_step(None if from_clean else clean, grad, clean, *sizes, 0.0, 1.0)
    assert actual.flatten().tolist() == [0.75, 0.0, 0.5, 1.0]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("from_clean", [False, True])
@pytest.mark.parametrize("shape", [(3, 2, 3, 5, 7), (4, 3, 2, 2)])
def test_every_clip_with_limits_of_its_own(shape, from_clean, channels, generator, device):
    x, grad, clean = inputs(shape, torch.float64, generator, device)
    wide = [shape[0], *[1] * (len(shape) - 4), channels, 1, 1]
    step_size, epsilon = (torch.rand(wide, generator=generator, dtype=torch.float64) * 0.2 for _ in range(2))
    start = None if from_clean else x
    actual = ops.pgd_step(start, grad, clean, step_size.to(device), epsilon.to(device), 0.0, 1.0).cpu()
    for row in range(shape[0]):
        own = [value[row].flatten().expand(shape[-3]) for value in (step_size, epsilon)]
        x_row, grad_row, clean_row = (t[row].cpu() for t in (clean if from_clean else x, grad, clean))
        expected = reference.pgd_step(x_row, grad_row, clean_row, *own, 0.0, 1.0)
        torch.testing.assert_close(actual[row], expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", ["numbers", "tensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layouts(layout, dtype, kind, generator, device):
    shape = (2, 2, 3, 6, 5)
    x, grad, clean = inputs(shape, dtype, generator, device)
    bounds = limits(kind, shape, generator, device)
    expected = ops.pgd_step(x, grad, clean, *bounds)
    laid_out = [layout(tensor) for tensor in (x, grad, clean)]
    kept = [tensor.clone() for tensor in laid_out]
    actual = ops.pgd_step(*laid_out, *bounds)
    assert torch.equal(actual, expected)
    assert actual.stride() == torch.empty_like(laid_out[0]).stride(), "the memory format changed"
    assert torch.equal(ops.pgd_step(laid_out[0], grad, clean, *bounds), expected), "mixed layouts"
    for tensor, before in zip(laid_out, kept, strict=True):
        torch.testing.assert_close(tensor, before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_result_is_in_the_ball_and_in_the_range(dtype, generator, device):
    x, grad, clean = inputs((2, 3, 3, 8, 8), dtype, generator, device)
    epsilon, lower, upper = 0.125, 0.0, 1.0
    for _ in range(4):
        x = ops.pgd_step(x, grad, clean, 0.07, epsilon, lower, upper)
        half_a_rounding = torch.finfo(dtype).eps
        assert ((x.double() - clean.double()).abs() <= epsilon + half_a_rounding).all()
        assert (x >= lower).all() and (x <= upper).all()


@pytest.mark.parametrize("per_channel", [False, True])
def test_zero_and_nan_gradients_move_nothing(per_channel, generator, device):
    x, _, _ = inputs((1, 2, 3, 4, 4), torch.float32, generator, device)
    bounds = [torch.full((3,), 0.1, device=device) if per_channel else 0.1] * 2
    assert torch.equal(ops.pgd_step(x, torch.zeros_like(x), x, *bounds), x)
    assert torch.equal(ops.pgd_step(x, torch.full_like(x, math.nan), x, *bounds), x)
    moved = ops.pgd_step(x, torch.full_like(x, math.inf), x, *bounds)
    torch.testing.assert_close(moved, x + 0.1)


def test_nan_pixels_stay_nan(generator, device):
    x, grad, clean = inputs((1, 1, 3, 4, 4), torch.float32, generator, device)
    x[0, 0, 1, 2, 2] = math.nan
    y = ops.pgd_step(x, grad, clean, 0.1, 0.2, 0.0, 1.0)
    assert torch.equal(y.isnan(), x.isnan())


@pytest.mark.parametrize("kind", ["numbers", "tensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_first_step_starts_at_the_clean_clip(layout, dtype, kind, generator, device):
    shape = (2, 2, 3, 6, 5)
    _, grad, clean = (layout(tensor) for tensor in inputs(shape, dtype, generator, device))
    bounds = limits(kind, shape, generator, device)
    actual = ops.pgd_step(None, grad, clean, *bounds)
    assert torch.equal(actual, ops.pgd_step(clean, grad, clean, *bounds))
    assert actual.stride() == torch.empty_like(grad).stride(), "not in the memory format of grad"


@pytest.mark.skipif(common.INTERPRETED, reason="fake tensors cannot enter an interpreted kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_first_step_under_opcheck_and_compile(dtype, generator, device):
    _, grad, clean = inputs((2, 3, 4, 5), dtype, generator, device)
    table = torch.rand(4, 3, generator=generator).to(device)
    opcheck(torch.ops.taf_fast.pgd_step.default, (None, grad, clean, table, []))

    def step(grad, clean, size):
        return ops.pgd_step(None, grad, clean, size, 0.2, 0.0, None)

    compiled = torch.compile(step, fullgraph=True)
    for size in (0.1, 0.3):
        torch.testing.assert_close(compiled(grad, clean, size), step(grad, clean, size), rtol=1e-6, atol=1e-6)


def test_the_result_is_a_constant_for_autograd(generator, device):
    x, grad, clean = (
        tensor.requires_grad_() for tensor in inputs((1, 1, 3, 4, 4), torch.float32, generator, device)
    )
    epsilon = torch.full((3,), 0.2, device=device, requires_grad=True)
    assert not ops.pgd_step(x, grad, clean, 0.1, epsilon).requires_grad
    assert not ops.pgd_step(None, grad, clean, 0.1, 0.2).requires_grad


X = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((X[0, 0], X[0, 0], X[0, 0], 0.1, 0.1), r"x must be \[...,C,H,W\], got 2"),
        ((X, X[:1], X, 0.1, 0.1), r"grad must have the shape of x, \[2, 3, 4, 4\], got \[1, 3, 4, 4\]"),
        ((X, X, X[:1], 0.1, 0.1), "clean must have the shape of x"),
        ((X, X.double(), X, 0.1, 0.1), "grad must have the dtype of x, torch.float32, got torch.float64"),
        ((X, X, X.half(), 0.1, 0.1), "clean must have the dtype of x"),
        ((X, X, X.byte(), 0.1, 0.1), "clean must have the dtype of x, torch.float32, got torch.uint8"),
        ((X, X, X.to("meta"), 0.1, 0.1), "clean must be on the device of x, cpu, got meta"),
        ((X, X.to("meta"), X, 0.1, 0.1), "grad must be on the device of x, cpu, got meta"),
        ((X.byte(), X.byte(), X.byte(), 0.1, 0.1), "x must be float64.* got torch.uint8"),
        ((X, X, X, -0.1, 0.1), "step_size must not be negative or NaN, got -0.1"),
        ((X, X, X, 0.1, -0.1), "epsilon must not be negative or NaN, got -0.1"),
        ((X, X, X, 0.1, math.nan), "epsilon must not be negative or NaN, got nan"),
        (
            (X, X, X, 0.1, 0.1, 1.0, 0.0),
            "lower must not exceed upper, and neither may be NaN, got 1.0 and 0.0",
        ),
        ((X, X, X, 0.1, 0.1, 0.0, math.nan), "lower must not exceed upper, and neither may be NaN"),
        ((X, X, X, 0.1, torch.ones(4)), r"epsilon must be .* 3 channels, got shape \[4\]"),
        ((X, X, X, torch.tensor(0.1), 0.1), r"step_size must be .* 3 channels, got shape \[\]"),
        ((X, X, X, 0.1, 0.1, torch.ones(3).int()), "lower must be float64.* got torch.int32"),
        ((X, X, X, 0.1, 0.1, None, torch.ones(3, device="meta")), "upper must be on the device of x"),
        ((None, X[0, 0], X[0, 0], 0.1, 0.1), r"grad must be \[...,C,H,W\], got 2"),
        ((None, X, X[:1], 0.1, 0.1), "clean must have the shape of grad"),
        ((None, X.byte(), X.byte(), 0.1, 0.1), "grad must be float64.* got torch.uint8"),
        ((None, X, X.byte(), 0.1, 0.1), "clean must have the dtype of grad, torch.float32, got torch.uint8"),
        ((None, X, X.to("meta"), 0.1, 0.1), "clean must be on the device of grad, cpu, got meta"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        ops.pgd_step(*arguments)
