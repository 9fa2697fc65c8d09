"""First and second derivatives in float64, and the whole second-order chain of the attack."""

import pytest
import torch
from reference import ops as reference
from torch.autograd import gradcheck, gradgradcheck

from taf_fast import ops


def leaf(*shape, generator, offset=0.0):
    return (torch.randn(shape, generator=generator, dtype=torch.float64) + offset).requires_grad_()


@pytest.mark.parametrize("pooled", [False, True])
def test_frame_cam(pooled, generator):
    features = leaf(2, 2, 3, 2, 3, generator=generator)
    grads = leaf(2, 2, 3, *([] if pooled else [2, 3]), generator=generator)
    assert gradcheck(ops.frame_cam, (features, grads))
    assert gradgradcheck(ops.frame_cam, (features, grads))


def registered(cam, num_frames, denominator, eps=1e-6):
    """The op without the short cut that a CPU takes past its registration."""
    return torch.ops.taf_fast.cam_loss(cam, num_frames, denominator == "range", eps)


@pytest.mark.parametrize("function", [ops.cam_loss, registered])
@pytest.mark.parametrize("denominator", ["max", "range"])
@pytest.mark.parametrize("offset", [3.0, -3.0], ids=["positive", "negative"])
def test_cam_loss(offset, denominator, function, generator):
    # Far from zero: finite differences of 1/D need a D that does not vanish.
    cam = leaf(2, 4, 2, 3, generator=generator, offset=offset)

    def loss_and_scores(cam):
        return function(cam, 3, denominator)[:2]

    assert gradcheck(loss_and_scores, (cam,))
    assert gradgradcheck(loss_and_scores, (cam,))


@pytest.mark.parametrize("function", [ops.cam_loss, registered])
def test_cam_loss_where_eps_acts(function, generator):
    cam = leaf(2, 4, 2, 3, generator=generator)

    def loss_and_scores(cam):
        return function(cam, 3, "max", eps=100.0)[:2]

    assert gradcheck(loss_and_scores, (cam,))
    assert gradgradcheck(loss_and_scores, (cam,))


def test_frames_are_not_differentiable(generator):
    assert not ops.cam_loss(leaf(2, 4, 2, 3, generator=generator), 3)[2].requires_grad


def test_temporal_shift(generator):
    x = leaf(6, 8, 2, 1, generator=generator)
    assert gradcheck(lambda x: ops.temporal_shift(x, 3, 4), (x,))
    assert gradgradcheck(lambda x: ops.temporal_shift(x, 3, 4), (x,))


def attack_gradient(frame_cam, cam_loss, x, trunk, head, denominator):
    """dL_C/dx through a map that depends on the features and on a gradient that depends on them too."""
    features = torch.tanh(torch.einsum("btihw,ci->btchw", x, trunk))
    logits = torch.tanh(features.mean((1, 3, 4)) @ head.T)
    cross_entropy = torch.nn.functional.cross_entropy(logits, torch.zeros(len(x), dtype=torch.int64))
    (grads,) = torch.autograd.grad(cross_entropy, features, create_graph=True)
    loss = cam_loss(frame_cam(features, grads), 3, denominator)[0]
    return loss, *torch.autograd.grad(loss.sum(), (x, trunk, head), create_graph=True)


@pytest.mark.parametrize("denominator", ["max", "range"])
def test_the_attack_and_its_second_order(denominator, generator):
    x = leaf(2, 5, 3, 3, 2, generator=generator)
    trunk, head = leaf(6, 3, generator=generator), leaf(4, 6, generator=generator)
    ours = attack_gradient(ops.frame_cam, ops.cam_loss, x, trunk, head, denominator)
    exact = attack_gradient(reference.frame_cam, reference.cam_loss, x, trunk, head, denominator)
    for actual, expected in zip(ours, exact, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())
    # One order higher: the gradient of the attack's own gradient.
    probes = [torch.randn(g.shape, generator=generator, dtype=torch.float64) for g in exact]
    second = [
        torch.autograd.grad(
            sum((g * probe).sum() for g, probe in zip(outputs, probes, strict=True)), (x, trunk, head)
        )
        for outputs in (ours, exact)
    ]
    for actual, expected in zip(*second, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8 * expected.abs().max().item())


def test_third_order(generator):
    features, grads = leaf(1, 3, 2, 2, 2, generator=generator), leaf(1, 3, 2, 2, 2, generator=generator)

    def third(frame_cam, cam_loss):
        total = cam_loss(frame_cam(features, grads) + 4, 2)[0].sum()
        for _ in range(3):
            pair = torch.autograd.grad(total, (features, grads), create_graph=True)
            total = sum(g.sin().sum() for g in pair)
        return pair

    for actual, expected in zip(
        third(ops.frame_cam, ops.cam_loss), third(reference.frame_cam, reference.cam_loss), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)
