"""cam_loss: numbers, gradients, ties, floors, NaN, layouts, errors. Also run with interpreted kernels."""

import math

import pytest
import torch
from reference import ops as reference

from taf_fast import ops
from taf_fast.kernels import common

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
DENOMINATORS = ["max", "range"]
SHAPES = [
    (3, 5, 3, 4),  # odd sizes
    (2, 1, 1, 1),
    (0, 4, 2, 2),
    (2, 2, 40, 30),  # more positions than a tile
    (2, 32, 2, 2),  # the most frames that the kernel takes
    (2, 33, 2, 2),  # more
]


def random_cam(shape, dtype, generator, device="cpu"):
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def gradient(function, cam, num_frames, denominator, grad_loss, grad_scores):
    cam = cam.detach().clone().requires_grad_()
    loss, scores, _ = function(cam, num_frames, denominator)
    total = (loss * grad_loss.to(loss)).sum() + (scores * grad_scores.to(scores)).sum()
    return torch.autograd.grad(total, cam)[0]


def registered(cam, num_frames, denominator, eps=1e-6):
    """The op without the short cut that a CPU takes past its registration."""
    return torch.ops.taf_fast.cam_loss(cam, num_frames, denominator == "range", eps)


FUNCTIONS = [ops.cam_loss, registered]


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_numbers(shape, dtype, denominator, generator, device):
    cam = random_cam(shape, dtype, generator, device)
    num_frames = (shape[1] + 1) // 2
    loss, scores, frames = ops.cam_loss(cam, num_frames, denominator)
    precision = torch.promote_types(dtype, torch.float32)
    assert (loss.dtype, scores.dtype, frames.dtype) == (precision, precision, torch.int64)
    assert loss.shape == shape[:1] and scores.shape == shape[:2] and frames.shape == (shape[0], num_frames)
    if shape[0] == 0:
        return
    exact_loss, exact_scores, _ = reference.cam_loss(cam.cpu().double(), num_frames, denominator)
    plain_loss, plain_scores, _ = reference.cam_loss(cam.cpu(), num_frames, denominator)
    reference.assert_as_good_as_pytorch(scores, exact_scores, plain_scores)
    reference.assert_as_good_as_pytorch(loss, exact_loss, plain_loss)
    # Two exact scores may be closer than rounding can tell: the choice is judged by the op's own scores.
    own = [reference.lowest(clip, num_frames) for clip in scores.tolist()]
    assert frames.tolist() == own


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[0] > 0])
def test_gradients(shape, dtype, denominator, function, generator, device):
    # All frames: which ones are lowest is test_numbers' business, and rounding may decide it.
    cam = random_cam(shape, dtype, generator, device)
    grad_loss = random_cam(shape[:1], torch.float32, generator, device)
    grad_scores = random_cam(shape[:2], torch.float32, generator, device)
    actual = gradient(function, cam, shape[1], denominator, grad_loss, grad_scores)
    cam, grad_loss, grad_scores = cam.cpu(), grad_loss.cpu(), grad_scores.cpu()
    exact = gradient(reference.cam_loss, cam.double(), shape[1], denominator, grad_loss, grad_scores)
    plain = gradient(reference.cam_loss, cam, shape[1], denominator, grad_loss, grad_scores)
    assert actual.dtype == dtype
    # The gradient at the extremes is a sum over the whole clip, in another order than PyTorch's.
    reference.assert_as_good_as_pytorch(actual, exact, plain, floor=6)


@pytest.mark.parametrize("num_frames", [1, 2, 4])
def test_only_the_lowest_frames_carry_the_loss(num_frames, device):
    # Scores far apart: no rounding can change the order.
    cam = torch.tensor([3.0, 1.0, 4.0, 2.0], device=device)[None, :, None, None] + torch.eye(3, device=device)
    zero = torch.zeros(1, device=device)
    actual = gradient(ops.cam_loss, cam, num_frames, "max", zero + 1, zero)
    exact = gradient(reference.cam_loss, cam.cpu().double(), num_frames, "max", zero.cpu() + 1, zero.cpu())
    torch.testing.assert_close(actual.cpu(), exact.float())
    assert ops.cam_loss(cam, num_frames)[2].tolist() == [[1, 3, 0, 2][:num_frames]]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_ties_go_to_the_first(denominator, function, device):
    # Integers: scores and extremes tie exactly at every dtype.
    cam = torch.tensor([[[2, 4], [0, 1]], [[0, 1], [2, 4]], [[4, 0], [2, 1]], [[4, 4], [4, 4]]])
    cam = cam[None].to(device, torch.float32)
    assert function(cam, 4, denominator)[2].tolist() == [[0, 1, 2, 3]]
    one = torch.ones(1, device=device)
    actual = gradient(function, cam, 2, denominator, one, 0 * one)
    exact = gradient(reference.cam_loss, cam.cpu().double(), 2, denominator, one.cpu(), 0 * one.cpu())
    torch.testing.assert_close(actual.cpu(), exact.float())


@pytest.mark.skipif(common.INTERPRETED, reason="transforms do not reach through a kernel")
@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_function_transforms_on_a_cpu(denominator, generator):
    cam = torch.randint(5, (1, 4, 2, 3), generator=generator).double()  # with ties
    direction = random_cam(cam.shape, torch.float64, generator)
    one = torch.ones(1, dtype=torch.float64)
    exact = gradient(reference.cam_loss, cam, 2, denominator, one, 0 * one)

    def loss(cam):
        return ops.cam_loss(cam, 2, denominator)[0].sum()

    torch.testing.assert_close(torch.func.grad(loss)(cam), exact)
    along = torch.func.jvp(loss, (cam,), (direction,))[1]
    torch.testing.assert_close(along, (exact * direction).sum())


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_ties_across_tiles_go_to_the_first(denominator, function, generator, device):
    # Tiles are powers of two: with a period of 8 the same lane meets the same value in every tile.
    cam = (torch.arange(4 * 1200) % 8 + 1).float().view(2, 2, 40, 30).to(device)
    weights = random_cam((2, 2), torch.float32, generator, device)
    actual = gradient(function, cam, 2, denominator, weights[0], weights)
    exact = gradient(reference.cam_loss, cam.cpu().double(), 2, denominator, weights[0].cpu(), weights.cpu())
    torch.testing.assert_close(actual.cpu(), exact.float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize(
    "values",
    [
        pytest.param([0.0, 0.0, 0.0, 0.0], id="all zero"),
        pytest.param([-3.0, -2.0, 0.0, -1.0], id="zero maximum"),
        pytest.param([-3.0, -2.0, -0.04, -1.0], id="negative below eps"),
        pytest.param([-3.0, -2.0, -0.5, -1.0], id="negative beyond eps"),
        pytest.param([0.01, 0.02, 0.03, 0.04], id="positive below eps"),
        pytest.param([5.0, 5.0, 5.0, 5.0], id="constant"),
    ],
)
def test_the_denominator_is_floored_with_its_sign(values, denominator, function, device):
    eps = 0.125
    cam = torch.tensor(values, device=device).view(1, 2, 1, 2).requires_grad_()
    exact_cam = cam.detach().cpu().double().requires_grad_()
    outputs = function(cam, 1, denominator, eps)
    exact_outputs = reference.cam_loss(exact_cam, 1, denominator, eps)
    for actual, exact in zip(outputs, exact_outputs, strict=True):
        torch.testing.assert_close(actual.cpu(), exact.to(actual.dtype))
    (actual,) = torch.autograd.grad(outputs[0].sum() + outputs[1][:, 1].sum(), cam)
    (exact,) = torch.autograd.grad(exact_outputs[0].sum() + exact_outputs[1][:, 1].sum(), exact_cam)
    torch.testing.assert_close(actual.cpu(), exact.float())


def test_nan_scores_sort_last(device):
    cam = torch.tensor([1.0, 4.0, math.inf, 2.0, math.inf], device=device).view(1, 5, 1, 1)
    loss, scores, frames = ops.cam_loss(cam, 4)
    # inf/inf makes a frame's score NaN, finite/inf makes it zero.
    assert scores.isnan().tolist() == [[False, False, True, False, True]]
    assert frames.tolist() == [[0, 1, 3, 2]]
    assert loss.isnan().all()
    assert ops.cam_loss(cam, 3)[0].tolist() == [0.0]


def test_a_nan_spoils_its_own_clip_only(generator, device):
    cam = random_cam((2, 3, 2, 2), torch.float32, generator, device)
    clean = ops.cam_loss(cam, 2)
    cam[1, 2, 0, 1] = math.nan
    loss, scores, frames = ops.cam_loss(cam, 2)
    assert loss[1].isnan() and scores[1].isnan().all() and frames[1].tolist() == [0, 1]
    assert loss[0] == clean[0][0] and torch.equal(scores[0], clean[1][0])


PICTURES = [(1, 1), (7, 7), (5, 9)]
KINDS = ["mixed signs", "all negative", "all zero", "equal frames", "ties"]


def cam_of_kind(kind, shape, generator, device):
    cam = random_cam(shape, torch.float32, generator)
    if kind == "all negative":
        cam = -cam.abs() - 0.1
    elif kind == "all zero":
        cam = torch.zeros(shape)
    elif kind == "equal frames":  # whole numbers, which sum exactly in any order
        cam = torch.randint(-9, 10, shape, generator=generator)[:, :1].expand(shape).float()
    elif kind == "ties":
        cam = torch.randint(1, 3, shape, generator=generator).float()
    return cam.to(device)


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("picture", PICTURES, ids=str)
@pytest.mark.parametrize("T", [1, 3, 8, 16, 33])
def test_every_number_of_lowest_frames(T, picture, kind, denominator, generator, device):
    cam = cam_of_kind(kind, (2, T, *picture), generator, device)
    scores = reference.cam_loss(cam.cpu().double(), 1, denominator)[1]
    plain_scores = reference.cam_loss(cam.cpu(), 1, denominator)[1]
    for num_frames in range(1, T + 1):
        loss, own_scores, frames = ops.cam_loss(cam, num_frames, denominator)
        reference.assert_as_good_as_pytorch(own_scores, scores, plain_scores)
        own = [reference.lowest(clip, num_frames) for clip in own_scores.tolist()]
        assert frames.tolist() == own
        if kind in ("equal frames", "ties", "all zero"):
            assert own == [reference.lowest(clip, num_frames) for clip in scores.tolist()], "ties are exact"
        exact, plain = (some.gather(1, frames.cpu()).mean(1) for some in (scores, plain_scores))
        reference.assert_as_good_as_pytorch(loss, exact, plain)


def gradient_of_frames(cam, frames, denominator):
    leaf = cam.detach().requires_grad_()
    scores = reference.cam_loss(leaf, 1, denominator)[1]
    return torch.autograd.grad(scores.gather(1, frames).mean(1).sum(), leaf)[0]


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("picture", PICTURES, ids=str)
@pytest.mark.parametrize("T", [1, 3, 8, 16, 33])
def test_the_gradient_of_the_lowest_frames(T, picture, kind, denominator, generator, device):
    cam = cam_of_kind(kind, (2, T, *picture), generator, device).requires_grad_()
    for num_frames in sorted({1, (T + 1) // 2, T}):
        loss, _, frames = ops.cam_loss(cam, num_frames, denominator)
        (actual,) = torch.autograd.grad(loss.sum(), cam)

        frames = frames.cpu()
        exact, plain = (
            gradient_of_frames(some, frames, denominator) for some in (cam.cpu().double(), cam.cpu())
        )
        reference.assert_as_good_as_pytorch(actual, exact, plain)


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("where", ["one position", "one frame", "the clip"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("T", [1, 3, 8, 33])
def test_nan_and_infinity_stay_in_their_clip(T, value, where, denominator, generator, device):
    cam = random_cam((3, T, 5, 9), torch.float32, generator, device)
    spoilt = cam.clone()
    if where == "one position":
        spoilt[1, T // 2, 2, 3] = value
    elif where == "one frame":
        spoilt[1, T // 2] = value
    else:
        spoilt[1] = value

    def run(cam):
        leaf = cam.clone().requires_grad_()
        loss, scores, frames = ops.cam_loss(leaf, num_frames, denominator)
        return loss, scores, frames, *torch.autograd.grad(loss.sum(), leaf)

    for num_frames in sorted({1, (T + 1) // 2, T}):
        actual, expected = run(spoilt), run(cam)
        for ours, theirs in zip(actual, expected, strict=True):
            assert torch.equal(ours[::2], theirs[::2]), "another clip changed"
        _, scores, frames, _ = actual
        assert len(set(frames[1].tolist())) == num_frames, "not distinct"
        assert frames[1].min() >= 0 and frames[1].max() < T
        assert frames[1].tolist() == reference.lowest(scores[1].tolist(), num_frames)
        assert scores[1, T // 2].isnan(), "the frame's own score"
        assert not math.isnan(value) or scores[1].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layouts(layout, dtype, generator, device):
    cam = random_cam((3, 4, 5, 6), dtype, generator, device)
    laid_out = layout(cam)
    kept = laid_out.clone()
    for actual, expected in zip(ops.cam_loss(laid_out, 2), ops.cam_loss(cam, 2), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    actual_cam, expected_cam = laid_out.detach().requires_grad_(), cam.clone().requires_grad_()
    (actual,) = torch.autograd.grad(ops.cam_loss(actual_cam, 4)[0].sum(), actual_cam)
    (expected,) = torch.autograd.grad(ops.cam_loss(expected_cam, 4)[0].sum(), expected_cam)
    torch.testing.assert_close(actual, expected)
    assert torch.equal(laid_out, kept), "the input was modified"


def test_max_normalisation_does_not_depend_on_the_scale(generator, device):
    cam = random_cam((4, 5, 3, 3), torch.float32, generator, device)
    cam -= cam.amin() - 0.1
    loss, scores, frames = ops.cam_loss(cam, 3)
    scaled_loss, scaled_scores, scaled_frames = ops.cam_loss(cam * 1024, 3)  # a power of two scales exactly
    assert torch.equal(loss, scaled_loss)
    assert torch.equal(scores, scaled_scores)
    assert torch.equal(frames, scaled_frames)


def test_scale_invariance_makes_the_gradient_orthogonal(generator, device):
    cam = random_cam((4, 5, 3, 3), torch.float32, generator, device).requires_grad_()
    (grad,) = torch.autograd.grad(ops.cam_loss(cam, 3)[0].sum(), cam)
    product = (cam * grad).detach().double()
    assert (product.sum((1, 2, 3)).abs() <= 1e-5 * product.abs().sum((1, 2, 3))).all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((torch.zeros(2, 3, 4), 1), r"cam must be \[B,T,h,w\], got 3"),
        ((torch.zeros(2, 0, 4, 4), 1), "at least one frame"),
        ((torch.zeros(2, 3, 4, 0), 1), "at least one frame and one position"),
        ((torch.zeros(2, 3, 4, 4), 4), "num_frames must be from 1 to the 3 frames of cam, got 4"),
        ((torch.zeros(2, 3, 4, 4), 0), "num_frames must be from 1 .* got 0"),
        ((torch.zeros(2, 3, 4, 4), 1, "mean"), r"denominator must be one of \('max', 'range'\), got 'mean'"),
        ((torch.zeros(2, 3, 4, 4), 1, "max", 0.0), "eps must be positive, got 0.0"),
        ((torch.zeros(2, 3, 4, 4), 1, "max", math.nan), "eps must be positive, got nan"),
        ((torch.zeros(2, 3, 4, 4, dtype=torch.int64), 1), "cam must be float64.* got torch.int64"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        ops.cam_loss(*arguments)
