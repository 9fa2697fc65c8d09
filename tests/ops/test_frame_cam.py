"""frame_cam: numbers, gradients, layouts, errors. Also run with interpreted kernels (test_interpreter)."""

import math

import pytest
import torch
from reference import ops as reference

from taf_fast import ops

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = [
    (2, 3, 5, 3, 4),  # odd sizes, all below one tile
    (1, 1, 1, 1, 1),
    (0, 2, 4, 3, 3),
    (2, 1, 130, 2, 3),  # more channels than a tile
    (1, 2, 3, 9, 9),  # more positions than a tile
]


def inputs(shape, dtype, generator, device):
    features = torch.randn(shape, generator=generator, dtype=torch.float64).relu().to(device, dtype)
    grads = torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)
    return features, grads


def exactly(*tensors):
    return [tensor.detach().cpu().double().requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_and_gradients(shape, dtype, generator, device):
    features, grads = inputs(shape, dtype, generator, device)
    precision = torch.promote_types(dtype, torch.float32)
    grad_cam = torch.randn(shape[:2] + shape[3:], generator=generator, dtype=precision).to(device)

    def run(function, features, grads, grad_cam):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in (features, grads)]
        cam = function(*leaves)
        return cam, *torch.autograd.grad(cam, leaves, grad_cam.to(cam.dtype))

    actual = run(ops.frame_cam, features, grads, grad_cam)
    exact = run(reference.frame_cam, *exactly(features, grads, grad_cam))
    plain = run(reference.frame_cam, features, grads, grad_cam)
    assert actual[0].dtype == precision and actual[0].is_contiguous()
    assert actual[1].dtype == actual[2].dtype == dtype
    for ours, truth, theirs in zip(actual, exact, plain, strict=True):
        reference.assert_as_good_as_pytorch(ours, truth.detach(), theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("picture", [(1, 1), (7, 7), (5, 9)], ids=str)
@pytest.mark.parametrize("T", [1, 3, 8, 16, 33])
def test_sizes_that_fill_no_tile(T, picture, dtype, generator, device):
    """133 channels are a multiple of no tile; once with channels fast, once with positions fast."""
    features, grads = inputs((2, T, 133, *picture), dtype, generator, device)
    features = features - 0.5  # negative maps too
    exact = reference.frame_cam(*exactly(features, grads)).detach()
    plain = reference.frame_cam(features, grads)
    channels_fast = features.movedim(2, -1).contiguous().movedim(-1, 2)
    for laid_out in (features, channels_fast):
        reference.assert_as_good_as_pytorch(ops.frame_cam(laid_out, grads), exact, plain)


def test_zeros_stay_zeros(generator, device):
    features, grads = inputs((2, 3, 5, 7, 7), torch.float32, generator, device)
    nothing = torch.zeros((2, 3, 7, 7), device=device)
    assert torch.equal(ops.frame_cam(torch.zeros_like(features), grads), nothing)
    assert torch.equal(ops.frame_cam(features, torch.zeros_like(grads)), nothing)
    assert torch.equal(ops.frame_cam(features, -grads.abs(), relu=True), nothing)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["features", "grads"])
def test_nan_and_infinity_stay_in_their_frame(where, value, generator, device):
    arguments = dict(
        zip(("features", "grads"), inputs((3, 4, 5, 3, 3), torch.float32, generator, device), strict=True)
    )
    grad_cam = torch.randn((3, 4, 3, 3), generator=generator).to(device)

    def run(features, grads):
        leaves = features.clone().requires_grad_(), grads.clone().requires_grad_()
        cam = ops.frame_cam(*leaves)
        return cam, *torch.autograd.grad(cam, leaves, grad_cam)

    expected = run(**arguments)
    spoilt = {name: tensor.clone() for name, tensor in arguments.items()}
    spoilt[where][1, 2, 3, 0, 1] = value
    actual = run(**spoilt)
    for ours, theirs in zip(actual, expected, strict=True):
        elsewhere = torch.ones(3, 4, dtype=torch.bool)
        elsewhere[1, 2] = False
        assert torch.equal(ours[elsewhere], theirs[elsewhere]), "another frame changed"
    finite = actual[0][1, 2].isfinite()
    if where == "features":
        finite[0, 1] = not finite[0, 1]
        assert finite.all(), "one position of the features is one position of the map"
    else:
        assert not finite.any(), "one channel's weight reaches the whole frame"


@pytest.mark.parametrize("pooled_dtype", [torch.bfloat16, torch.float32])
def test_pooled_gradients(pooled_dtype, generator, device):
    features, grads = inputs((2, 3, 5, 3, 4), torch.bfloat16, generator, device)
    pooled = grads.mean((3, 4), dtype=torch.float32).to(pooled_dtype)
    exact = reference.frame_cam(*exactly(features, pooled)).detach()
    reference.assert_as_good_as_pytorch(
        ops.frame_cam(features, pooled), exact, reference.frame_cam(features, pooled.bfloat16())
    )


def test_relu(generator, device):
    features, grads = inputs((2, 3, 5, 3, 4), torch.float32, generator, device)
    torch.testing.assert_close(
        ops.frame_cam(features, grads, relu=True), ops.frame_cam(features, grads).relu(), rtol=0, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layouts(layout, dtype, generator, device):
    features, grads = inputs((2, 3, 20, 5, 4), dtype, generator, device)
    grad_cam = torch.randn((2, 3, 5, 4), generator=generator).to(device)
    leaves = [layout(tensor).detach().requires_grad_() for tensor in (features, grads)]
    kept = [leaf.detach().clone() for leaf in leaves]
    cam = ops.frame_cam(*leaves)
    actual = (cam, *torch.autograd.grad(cam, leaves, layout(grad_cam)))

    exact_leaves = exactly(features, grads)
    exact_cam = reference.frame_cam(*exact_leaves)
    exact = (exact_cam, *torch.autograd.grad(exact_cam, exact_leaves, grad_cam.cpu().double()))
    for ours, truth in zip(actual, exact, strict=True):
        reference.assert_as_good_as_pytorch(ours, truth.detach(), truth.detach().to(dtype))
    for leaf, before in zip(leaves, kept, strict=True):
        assert torch.equal(leaf, before), "an input was modified"


def test_features_gradient_keeps_the_memory_format(generator, device):
    features, grads = inputs((2, 3, 8, 5, 4), torch.float32, generator, device)
    features = features.movedim(2, -1).contiguous().movedim(-1, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(ops.frame_cam(features, grads).sum(), features)
    assert gradient.stride() == features.stride()


def test_gradient_of_a_sum_is_an_expanded_tensor(generator, device):
    features, grads = inputs((2, 2, 4, 3, 3), torch.float32, generator, device)
    features.requires_grad_()
    (gradient,) = torch.autograd.grad(ops.frame_cam(features, grads).sum(), features)
    expected = grads.mean((3, 4), keepdim=True).expand_as(features)
    torch.testing.assert_close(gradient, expected)


def test_autocast_does_not_lower_the_precision(generator, device):
    features, grads = inputs((2, 3, 64, 3, 4), torch.float32, generator, device)
    with torch.autocast(device, dtype=torch.bfloat16):
        under_autocast = ops.frame_cam(features, grads)
    assert torch.equal(under_autocast, ops.frame_cam(features, grads))


F = torch.zeros(2, 3, 4, 5, 5)


@pytest.mark.parametrize(
    "features, grads, message",
    [
        (F[0], F[0], r"features must be \[B,T,C,h,w\], got 4"),
        (F[..., :0], F[..., :0], "at least one position"),
        (F, F[:1], r"grads must have the shape of features, \[2, 3, 4, 5, 5\], got \[1, 3, 4, 5, 5\]"),
        (F, F[:, 0, 0], r"pooled to \[2, 3, 4\], got \[2, 5, 5\]"),
        (F, F.double(), "grads must have the dtype of features, torch.float32, got torch.float64"),
        (F, F[..., 0, 0].bfloat16(), "pooled grads must be torch.float32"),
        (F, F.to("meta"), "grads must be on the device of features, cpu, got meta"),
        (F, F[..., 0, 0].to("meta"), "grads must be on the device of features, cpu, got meta"),
        (F.int(), F.int(), "features must be float64.* got torch.int32"),
    ],
)
def test_errors(features, grads, message):
    with pytest.raises(ValueError, match=message):
        ops.frame_cam(features, grads)
