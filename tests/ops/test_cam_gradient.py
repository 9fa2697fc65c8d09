"""cam_gradient: numbers, layouts, floors, ties, NaN, errors. Also run with interpreted kernels."""

import math

import pytest
import torch
from reference import cam_gradient as reference
from reference.ops import assert_as_good_as_pytorch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import dispatch_functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from taf_fast import ops
from taf_fast.kernels import common

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
DENOMINATORS = ["max", "range"]
# (B, T, C, h, w), K, N, whether there is a dropout mask, denominator
CASES = [
    ((2, 3, 5, 5, 9), 5, 2, True, "max"),  # odd sizes, all below one tile
    ((2, 3, 5, 5, 9), 5, 3, False, "range"),
    ((2, 1, 3, 1, 1), 2, 1, False, "max"),
    ((0, 4, 6, 2, 2), 5, 2, True, "range"),
    ((1, 8, 130, 7, 7), 174, 4, True, "max"),  # more channels than a tile
    ((1, 16, 70, 7, 7), 174, 1, False, "range"),
    ((2, 16, 6, 1, 1), 5, 16, True, "range"),
    ((1, 3, 20, 5, 9), 2, 1, True, "max"),
    ((1, 8, 40, 5, 9), 5, 8, False, "max"),
    ((1, 2, 6, 9, 16), 5, 1, True, "range"),  # more positions than a tile: several programs per frame
    ((1, 2, 3, 3, 3), 1100, 1, False, "max"),  # more classes than a pass
    ((1, 32, 4, 2, 2), 5, 20, True, "max"),  # the most frames that the kernel takes
    ((1, 33, 4, 2, 2), 5, 20, True, "max"),  # more
]


def normal(*shape, generator):
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def problem(shape, classes, masked, generator, dtype=torch.float64, device="cpu"):
    """features, weight, bias, targets and mask at a dtype."""
    B, T, C, _, _ = shape
    features = normal(*shape, generator=generator)
    features = torch.where(features > 0, features, features / 8)
    weight, bias = normal(classes, C, generator=generator) / 2, normal(classes, generator=generator)
    targets = torch.randint(classes, (B,), generator=generator).to(device)
    mask = (torch.rand(B, T, C, generator=generator) > 0.5).double() * 2 if masked else None
    features, weight, bias, mask = (
        None if x is None else x.to(device, dtype) for x in (features, weight, bias, mask)
    )
    return features, weight, bias, targets, mask


def exactly(*tensors):
    return [x.cpu().double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in tensors]


def run(features, weight, bias, targets, mask, num_frames, denominator="max", eps=1e-6, **changes):
    """Call the op as a step would, on the exact logits (in the precision of its sums)."""
    f, w, b, m = exactly(features, weight, bias, mask)
    logits = reference.head(f, w, b, m).to(features.device, common.accumulator(features.dtype))
    arguments = {"features": features, "weight": weight, "logits": logits, "mask": mask, **changes}
    return ops.cam_gradient(
        arguments["features"],
        arguments["weight"],
        arguments["logits"],
        targets,
        num_frames,
        denominator,
        eps,
        arguments["mask"],
    )


def check(actual, features, weight, bias, targets, mask, num_frames, generator, denominator="max", eps=1e-6):
    """Against autograd in float64, with autograd's own error at float32 as the measure.

    How far rounding is amplified depends on the clip: the worst of four runs, three of them on inputs that
    differ in their last digit.
    """
    gradient, loss, frames = (x.cpu() for x in actual)
    inputs = features, weight, bias, mask
    options = dict(num_frames=num_frames, denominator=denominator, eps=eps, frames=frames)
    targets = targets.cpu()
    f, w, b, m = exactly(*inputs)
    exact, exact_loss, scores = reference.cam_gradient(f, w, b, targets, mask=m, **options)
    if features.dtype == torch.float64:
        torch.testing.assert_close(gradient, exact, rtol=1e-10, atol=1e-10 * exact.abs().max().item())
        torch.testing.assert_close(loss, exact_loss, rtol=1e-10, atol=1e-10)
        return
    ulp = torch.finfo(torch.float32).eps
    error = loss_error = torch.zeros(())
    for attempt in range(4):
        nudged = []
        for x in inputs:
            if x is not None:
                sign = torch.randint(-1, 2, x.shape, generator=generator)
                x = x.cpu().float() * (1 + ulp * (attempt > 0) * sign)
            nudged.append(x)
        f, w, b, m = nudged
        plain, plain_loss, _ = reference.cam_gradient(f, w, b, targets, mask=m, **options)
        error = torch.maximum(error, (plain - exact).abs().max())
        loss_error = torch.maximum(loss_error, (plain_loss - exact_loss).abs().max())
    # exact + error stands for a run of plain PyTorch that was off by the worst of the four.
    assert_as_good_as_pytorch(gradient, exact, exact + error)
    assert_as_good_as_pytorch(loss, exact_loss, exact_loss + loss_error)
    # The lowest frames by exact scores, as far as rounding can tell.
    for own, clip in zip(frames, scores, strict=True):
        lowest = clip.sort().values[:num_frames]
        torch.testing.assert_close(clip[own], lowest, rtol=1e-4, atol=1e-4 * clip.abs().max().item())
        assert len(set(own.tolist())) == num_frames


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, classes, num_frames, masked, denominator", CASES)
def test_numbers(shape, classes, num_frames, masked, denominator, dtype, generator, device):
    inputs = problem(shape, classes, masked, generator, dtype, device)
    features = inputs[0]
    gradient, loss, frames = actual = run(*inputs, num_frames, denominator)
    assert gradient.shape == shape and gradient.dtype == dtype
    assert loss.shape == shape[:1] and loss.dtype == torch.promote_types(dtype, torch.float32)
    assert frames.shape == (shape[0], num_frames) and frames.dtype == torch.int64
    assert gradient.stride() == features.stride()
    assert not gradient.requires_grad and not loss.requires_grad
    if shape[0] > 0:
        check(actual, *inputs, num_frames, generator, denominator)


@pytest.mark.parametrize("num_frames", [1, 3, 8])
def test_number_of_frames(num_frames, generator, device):
    inputs = problem((2, 8, 12, 3, 3), 7, True, generator, torch.float32, device)
    check(run(*inputs, num_frames), *inputs, num_frames, generator)


@pytest.mark.parametrize("masked", [False, True])
def test_equals_differentiating_the_two_ops(masked, generator, device):
    """The loss, frames and gradient match the double backward through the ops that it replaces."""
    features, weight, bias, targets, mask = problem((2, 4, 6, 3, 4), 5, masked, generator, device=device)
    gradient, loss, frames = run(features, weight, bias, targets, mask, 2, "range")
    features.requires_grad_()
    logits = reference.head(features, weight, bias, mask)
    cross_entropy = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    (grads,) = torch.autograd.grad(cross_entropy, features, create_graph=True)
    expected_loss, _, expected_frames = ops.cam_loss(ops.frame_cam(features, grads), 2, "range")
    (expected,) = torch.autograd.grad(expected_loss.sum(), features)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(loss, expected_loss.detach(), rtol=1e-10, atol=1e-12)
    assert torch.equal(frames, expected_frames)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_in_float32_and_features_in_half_precision(dtype, generator, device):
    features, *others = problem((2, 3, 20, 5, 9), 5, True, generator, torch.float32, device)
    inputs = features.to(dtype), *others
    actual = run(*inputs, 2)
    assert actual[0].dtype == dtype and actual[1].dtype == torch.float32
    check(actual, *inputs, 2, generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layouts(layout, dtype, generator, device):
    inputs = problem((2, 3, 20, 5, 4), 7, True, generator, dtype, device)
    features = layout(inputs[0])
    kept = features.clone()
    actual = run(features, *inputs[1:], 2)
    check(actual, *inputs, 2, generator)
    assert torch.equal(features, kept), "features was modified"


def test_layouts_of_the_other_tensors(generator, device):
    features, weight, bias, targets, mask = problem(
        (2, 3, 70, 3, 4), 40, True, generator, torch.float32, device
    )
    expected = run(features, weight, bias, targets, mask, 2)

    def spread(x):
        """Every second entry of every axis of a larger tensor, the axes reversed in memory."""
        larger = x.new_full([2 * size for size in reversed(x.shape)], -1)
        view = larger.permute(*reversed(range(x.dim())))[(slice(None, None, 2),) * x.dim()]
        return view.copy_(x)

    logits = reference.head(features.cpu(), weight.cpu(), bias.cpu(), mask.cpu()).to(device)
    spread_out = [spread(x) for x in (weight, logits, targets, mask)]
    kept = [x.clone() for x in spread_out]
    weight, logits, targets, mask = spread_out
    for ours, truth in zip(
        ops.cam_gradient(features, weight, logits, targets, 2, mask=mask), expected, strict=True
    ):
        torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(x, before) for x, before in zip(spread_out, kept, strict=True)), (
        "an input was modified"
    )


@pytest.mark.parametrize("order", [(0, 1, 3, 4, 2), (0, 2, 1, 3, 4), (0, 1, 2, 3, 4)])
def test_the_gradient_keeps_the_memory_format(order, generator, device):
    """Channels last; channels before frames, as 3D models have them; contiguous."""
    inputs = problem((2, 3, 20, 5, 4), 7, False, generator, torch.float32, device)
    features = inputs[0].permute(order).contiguous().permute(*(order.index(axis) for axis in range(5)))
    gradient, _, _ = actual = run(features, *inputs[1:], 2)
    assert gradient.stride() == features.stride()
    check(actual, *inputs, 2, generator)


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("offset", [0.0, 3.0], ids=["all zero", "constant"])
def test_features_without_contrast(offset, denominator, generator, device):
    """All positions tie: the first is both minimum and maximum, and D is floored if it is zero."""
    features, *others = problem((2, 3, 6, 2, 3), 5, True, generator, torch.float32, device)
    others[-1] = torch.full_like(others[-1], 2.0)  # all frames equal
    features = torch.full_like(features, offset)
    actual = run(features, *others, 2, denominator, 0.125)
    assert actual[2].tolist() == [[0, 1]] * 2
    check(actual, features, *others, 2, generator, denominator, 0.125)


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("scale", [1.0, -1.0], ids=["positive", "negative"])
def test_the_denominator_is_floored_with_its_sign(scale, denominator, generator, device):
    """Maps all positive or all negative, and below an eps of 100."""
    features, weight, bias, _, mask = problem((2, 3, 6, 2, 3), 2, False, generator, torch.float32, device)
    targets = torch.zeros(2, dtype=torch.int64, device=device)
    # With two classes and target 0, (e W)_c has the sign of weight[1,c] - weight[0,c].
    weight = torch.stack((weight[0], weight[0] + scale))
    inputs = features.abs(), weight, bias, targets, mask
    actual = run(*inputs, 2, denominator, 100.0)
    check(actual, *inputs, 2, generator, denominator, 100.0)


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_ties_go_to_the_first(denominator, generator, device):
    """Two equal frames, in which position 1 equals 2 and 4 equals 5: exact ties in every precision."""
    features, *others = problem((1, 3, 4, 2, 3), 5, False, generator, torch.float32, device)
    features = features.flatten(3)
    features[..., 2], features[..., 5] = features[..., 1], features[..., 4]
    features[:, 1] = features[:, 0]
    inputs = features.unflatten(3, (2, 3)), *others
    for num_frames in (1, 2, 3):
        actual = run(*inputs, num_frames, denominator)
        scores = reference.cam_gradient(*exactly(*inputs[:3]), inputs[3].cpu(), num_frames, denominator)[2]
        order = sorted(range(3), key=lambda t: (round(scores[0, t].item(), 9), t))
        assert actual[2].tolist() == [order[:num_frames]]
        check(actual, *inputs, num_frames, generator, denominator)


def test_the_derivative_along_the_features_themselves(generator, device):
    """<F, dL/dF> against a finite difference of the loss: no second derivative by autograd is involved."""
    features, weight, bias, targets, mask = problem((3, 4, 6, 3, 3), 5, True, generator, device=device)
    gradient, _, frames = run(features, weight, bias, targets, mask, 2)
    f, w, b, m = exactly(features, weight, bias, mask)

    def loss(scale):
        options = dict(num_frames=2, mask=m, frames=frames)
        return reference.cam_gradient(f * scale, w, b, targets.cpu(), **options)[1].sum().item()

    slope = (loss(1 + 1e-5) - loss(1 - 1e-5)) / 2e-5
    products = features * gradient
    assert math.isclose(
        products.sum().item(), slope, rel_tol=1e-5, abs_tol=1e-5 * products.abs().sum().item()
    )


def test_scale_invariance_makes_the_gradient_orthogonal(generator, device):
    """With D = M the loss does not depend on the map's scale, so <F, dL/dF> comes through the logits alone
    and is 0 if the softmax is saturated."""
    features, weight, _, targets, mask = problem((2, 4, 6, 3, 3), 2, True, generator, torch.float32, device)
    logits = torch.full((2, 2), -200.0, device=device).scatter(1, 1 - targets[:, None], 200.0)
    gradient, _, _ = ops.cam_gradient(features, weight, logits, targets, 2, mask=mask)
    products = (features * gradient).double()
    assert gradient.abs().amax((1, 2, 3, 4)).min() > 0
    assert (products.sum((1, 2, 3, 4)).abs() <= 1e-4 * products.abs().sum((1, 2, 3, 4))).all()


def test_channels_dropped_everywhere_get_no_gradient(generator, device):
    features, weight, bias, targets, mask = problem(
        (2, 3, 6, 3, 3), 5, True, generator, torch.float32, device
    )
    gradient, _, _ = run(features, weight, bias, targets, mask, 2)
    assert (gradient[mask == 0] == 0).all() and (gradient[mask != 0] != 0).any()


def test_clips_do_not_mix(generator, device):
    inputs = problem((3, 4, 6, 3, 3), 5, True, generator, torch.float32, device)
    together = run(*inputs, 2)
    features, weight, bias, targets, mask = inputs
    alone = run(features[1:2], weight, bias, targets[1:2], mask[1:2], 2)
    for ours, one in zip(together, alone, strict=True):  # a matrix product's order of sums may depend on B
        torch.testing.assert_close(ours[1:2], one, rtol=1e-5, atol=1e-7)
    features[2, 1, 0, 0, 0] = math.nan
    spoiled = run(features, weight, bias, targets, mask, 2, logits=run_logits(inputs))
    assert spoiled[0][2].isnan().any() and spoiled[1][2].isnan() and spoiled[2][2].tolist() == [0, 1]
    for ours, before in zip(spoiled, run(*inputs, 2, logits=run_logits(inputs)), strict=True):
        assert torch.equal(ours[:2], before[:2])


def run_logits(inputs):
    features, weight, bias, _, mask = exactly(*inputs)
    return reference.head(features.nan_to_num(), weight, bias, mask).to(inputs[0])


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinite_features_stay_within_bounds(value, generator, device):
    features, weight, bias, targets, _ = problem((2, 3, 1, 2, 2), 5, False, generator, torch.float32, device)
    features = torch.full_like(features, value)
    logits = normal(2, 5, generator=generator).to(features)
    gradient, loss, frames = ops.cam_gradient(features, weight, logits, targets, 2)
    assert gradient.isnan().all() and loss.isnan().all() and frames.tolist() == [[0, 1]] * 2


def test_the_results_are_constants(generator, device):
    features, weight, bias, targets, mask = problem(
        (2, 3, 6, 3, 3), 5, True, generator, torch.float32, device
    )
    for tensor in (features, weight, mask):
        tensor.requires_grad_()
    logits = reference.head(features, weight, bias, mask)
    assert not any(x.requires_grad for x in ops.cam_gradient(features, weight, logits, targets, 2, mask=mask))


def test_autocast_does_not_lower_the_precision(generator, device):
    inputs = problem((2, 3, 64, 3, 4), 40, True, generator, torch.float32, device)
    logits = run_logits(inputs)
    with torch.autocast(device, dtype=torch.bfloat16):
        under_autocast = run(*inputs, 2, logits=logits)
    for ours, expected in zip(under_autocast, run(*inputs, 2, logits=logits), strict=True):
        assert torch.equal(ours, expected)


compiled_only = pytest.mark.skipif(common.INTERPRETED, reason="kernels are interpreted in this process")


@pytest.mark.slow
@compiled_only
@pytest.mark.parametrize("masked, dtype", [(False, torch.float32), (True, torch.bfloat16)])
def test_opcheck(masked, dtype, generator):
    features, weight, _, targets, mask = problem((2, 3, 6, 3, 3), 5, masked, generator, dtype)
    logits = normal(2, 5, generator=generator).to(dtype)
    operator = torch.ops.taf_fast.cam_gradient.default
    torch.library.opcheck(operator, (features, weight, logits, targets, mask, 2, masked, 1e-6))


@pytest.mark.slow
@compiled_only
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_equals_eager(backend, generator):
    features, weight, _, targets, mask = problem((2, 3, 6, 3, 3), 5, True, generator, torch.float32)

    def function(features, weight, targets, mask):
        logits = (features.mean((3, 4)) * mask).mean(1) @ weight.T
        return ops.cam_gradient(features.relu(), weight, logits, targets, 2, "range", mask=mask)

    compiled = torch.compile(function, fullgraph=True, backend=backend)
    arguments = features, weight, targets, mask
    for ours, expected in zip(compiled(*arguments), function(*arguments), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@compiled_only
def test_torch_finds_the_kernels_behind_the_op():
    """Their source is part of the key under which compiled graphs are cached."""
    library = pytest.importorskip("torch._library.triton")
    kernels = library.get_triton_kernels_for_op("taf_fast::cam_gradient")
    launched = {"_cam_gradient_clip_kernel", "_cam_gradient_kernel", "_cam_gradient_weights_kernel"}
    # What they call is among them: a change there changes the compiled graph too.
    assert launched | {"tile_statistics", "order_of_frames"} <= {kernel.__name__ for kernel in kernels}


@compiled_only
def test_the_cuda_branch_traces_to_three_kernels(generator):
    """Fake CUDA tensors need no GPU; the outputs match the CPU's."""
    features, weight, _, targets, mask = problem((2, 3, 6, 3, 3), 5, True, generator, torch.bfloat16)
    logits = normal(2, 5, generator=generator)
    operator = torch.ops.taf_fast.cam_gradient.default
    arguments = features, weight, logits, targets, mask
    expected = operator(*arguments, 2, False, 1e-6)
    with FakeTensorMode():
        fake = [torch.empty(x.shape, dtype=x.dtype, device="cuda") for x in arguments]
        graph = make_fx(dispatch_functionalize(lambda *x: operator(*x, 2, False, 1e-6)))(*fake)
    assert sum("triton_kernel_wrapper" in str(node.target) for node in graph.graph.nodes) == 3
    outputs = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    for node, tensor in zip(outputs, expected, strict=True):
        value = node.meta["val"]
        assert (value.shape, value.dtype, value.stride()) == (tensor.shape, tensor.dtype, tensor.stride())


F, W, Z = torch.zeros(2, 3, 4, 5, 5), torch.zeros(6, 4), torch.zeros(2, 6)
Y, M = torch.zeros(2, dtype=torch.int64), torch.ones(2, 3, 4)


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((F[0], W, Z, Y, 1), {}, r"features must be \[B,T,C,h,w\], got 4"),
        ((F[..., :0], W, Z, Y, 1), {}, r"one position, got \[B,T,C,h,w\] = \[2, 3, 4, 5, 0\]"),
        ((F[:, :0], W, Z, Y, 1), {}, "at least one frame"),
        ((F[:, :, :0], W, Z, Y, 1), {}, "one channel"),
        ((F.int(), W, Z, Y, 1), {}, "features must be float64.* got torch.int32"),
        ((F, W.T, Z, Y, 1), {}, r"weight must be \[K,4\] .* got \[4, 6\]"),
        ((F, W[:0], Z[:, :0], Y, 1), {}, r"weight must be \[K,4\] with at least one class, got \[0, 4\]"),
        ((F, W.int(), Z, Y, 1), {}, "weight must be float64.* got torch.int32"),
        ((F, W, Z[:, :5], Y, 1), {}, r"logits must be \[B,K\] = \[2, 6\], got \[2, 5\]"),
        ((F, W, Z.int(), Y, 1), {}, "logits must be float64.* got torch.int32"),
        ((F, W, Z, Y.int(), 1), {}, "targets must be int64, got torch.int32"),
        ((F, W, Z, Y[:1], 1), {}, r"targets must be \[B\] = \[2\], got \[1\]"),
        ((F, W, Z, Y, 1), {"mask": M[:, 0]}, r"mask must be \[B,T,C\] = \[2, 3, 4\], got \[2, 4\]"),
        ((F, W, Z, Y, 1), {"mask": M.bool()}, "mask must be float64.* got torch.bool"),
        ((F, W, Z, Y, 1), {"mask": M.to("meta")}, "mask must be on the device of features, cpu, got meta"),
        ((F, W.to("meta"), Z, Y, 1), {}, "weight must be on the device of features, cpu, got meta"),
        ((F, W, Z.to("meta"), Y, 1), {}, "logits must be on the device of features"),
        ((F, W, Z, Y.to("meta"), 1), {}, "targets must be on the device of features"),
        ((F, W, Z, Y, 4), {}, "num_frames must be from 1 to the 3 frames of features, got 4"),
        ((F, W, Z, Y, 0), {}, "num_frames must be from 1 .* got 0"),
        ((F, W, Z, Y, 1, "mean"), {}, r"denominator must be one of \('max', 'range'\), got 'mean'"),
        ((F, W, Z, Y, 1), {"eps": 0.0}, "eps must be positive, got 0.0"),
        ((F, W, Z, Y, 1), {"eps": math.nan}, "eps must be positive, got nan"),
    ],
)
def test_errors(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        ops.cam_gradient(*arguments, **options)
