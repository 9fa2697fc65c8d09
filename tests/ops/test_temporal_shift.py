"""temporal_shift: numbers, gradients, inverse, layouts, errors. Also run with interpreted kernels."""

import pytest
import torch
from reference import ops as reference

from taf_fast import ops

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
CASES = [  # shape, num_segments, fold_div
    ((6, 17, 3, 5), 3, 8),  # odd sizes
    ((4, 8, 2, 2), 1, 8),  # one frame: both groups become zero
    ((4, 5, 2, 2), 2, 8),  # fewer channels than fold_div: a copy
    ((0, 16, 2, 2), 4, 8),
    ((4, 4, 1, 1), 4, 2),  # every channel moves
    ((2, 300, 3, 3), 2, 3),  # a group of more than a tile
    ((2, 9, 40, 40), 2, 4),  # more positions than a tile
]


def random(shape, dtype, generator, device="cpu"):
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, num_segments, fold_div", CASES)
def test_numbers_and_gradients(shape, num_segments, fold_div, dtype, generator, device):
    x = random(shape, dtype, generator, device).requires_grad_()
    grad = random(shape, dtype, generator, device)
    actual = ops.temporal_shift(x, num_segments, fold_div)
    exact = reference.temporal_shift(x, num_segments, fold_div)
    assert torch.equal(actual, exact), "a copy has no rounding"
    for ours, theirs in zip(
        torch.autograd.grad(actual, x, grad), torch.autograd.grad(exact, x, grad), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_the_original_indexing(device):
    """Frame 1 of 3 matches the description in the published code."""
    x = torch.arange(3 * 8, dtype=torch.float32, device=device).view(3, 8, 1, 1)
    y = ops.temporal_shift(x, 3, 4)
    assert y[1].flatten().tolist() == [16, 17, 2, 3, 12, 13, 14, 15]
    assert y[0].flatten().tolist() == [8, 9, 0, 0, 4, 5, 6, 7]
    assert y[2].flatten().tolist() == [0, 0, 10, 11, 20, 21, 22, 23]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("C", [20, 64])
def test_layouts(layout, C, dtype, generator, device):
    x = random((6, C, 5, 4), dtype, generator, device)
    grad = random((6, C, 5, 4), dtype, generator, device)
    laid_out = layout(x).detach().requires_grad_()
    kept = laid_out.detach().clone()
    actual, expected = ops.temporal_shift(laid_out, 3), reference.temporal_shift(x, 3)
    assert torch.equal(actual, expected)
    (gradient,) = torch.autograd.grad(actual, laid_out, layout(grad))
    x.requires_grad_()
    (expected_gradient,) = torch.autograd.grad(reference.temporal_shift(x, 3), x, grad)
    assert torch.equal(gradient, expected_gradient)
    assert torch.equal(laid_out, kept), "the input was modified"


def test_channels_last_stays_channels_last(generator, device):
    x = random((6, 16, 5, 4), torch.float32, generator, device).to(memory_format=torch.channels_last)
    assert ops.temporal_shift(x, 3).is_contiguous(memory_format=torch.channels_last)


def test_the_gradient_undoes_the_shift_away_from_the_ends(generator, device):
    x = random((2 * 5, 16, 2, 3), torch.float32, generator, device).requires_grad_()
    shifted = ops.temporal_shift(x, 5)
    (back,) = torch.autograd.grad(shifted, x, shifted)
    inner = (slice(None), slice(1, -1))
    assert torch.equal(back.view(2, 5, 16, 2, 3)[inner], x.view(2, 5, 16, 2, 3)[inner])


def test_the_second_gradient_is_the_shift_again(generator, device):
    x, v = (random((6, 16, 2, 3), torch.float32, generator, device) for _ in range(2))
    x.requires_grad_()
    v.requires_grad_()
    (first,) = torch.autograd.grad(ops.temporal_shift(x, 3), x, v, create_graph=True)
    (second,) = torch.autograd.grad(first, v, x.detach())
    assert torch.equal(second, ops.temporal_shift(x, 3))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((torch.zeros(6, 8, 2), 3), r"x must be \[B\*T,C,h,w\], got 3"),
        ((torch.zeros(6, 8, 2, 2), 4), "num_segments must divide the 6 frames of x, got 4"),
        ((torch.zeros(6, 8, 2, 2), 0), "num_segments must be at least 1, got 0"),
        ((torch.zeros(6, 8, 2, 2), 3, 1), "fold_div must be at least 2, got 1"),
        ((torch.zeros(6, 8, 2, 2).long(), 3), "x must be float64.* got torch.int64"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        ops.temporal_shift(*arguments)
