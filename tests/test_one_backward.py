"""One backward with one graph in memory at a time: what a trainer may do with the loss of a step."""

import copy

import pytest
import torch
from reference.step import share_all_but_batch_norm, taf_losses
from reference.temporal_augment import Net, clips_in_range
from torch import nn

from taf_fast import TAFStep, TemporalAugment, add_adversarial_bn
from taf_fast.bench.counts import count_step

ATTACK = dict(epsilon=64 / 255, step_size=32 / 255, steps=1, num_frames=2, denominator="max")


@pytest.fixture
def made(generator):
    """A network, clips and labels of which some are wrong."""
    net = Net(segments=4).double()
    x = clips_in_range(net, 6, 4, 9, generator)
    predicted = copy.deepcopy(net)(x).argmax(1)
    return net, x, torch.where(torch.arange(6) % 3 == 0, predicted, (predicted + 1) % 5)


def step_of(net):
    return TAFStep(add_adversarial_bn(net), TemporalAugment(**ATTACK, label="true"), compile=False)


def literal(net, x, labels):
    """-> the loss of two networks that share all but batch norm, and the clean one."""
    clean, adversarial = copy.deepcopy(net), copy.deepcopy(net)
    share_all_but_batch_norm(clean, adversarial)
    rows = [i for i in range(6) if i % 3]
    loss, *_ = taf_losses(clean, adversarial, x, labels, labels, rows, 0.7, attack_bn="frozen", **ATTACK)
    return loss, clean


def assert_same(net, expected, scale=1.0):
    for name, parameter in expected.named_parameters():
        actual = net.get_parameter(name).grad
        torch.testing.assert_close(actual, scale * parameter.grad, rtol=1e-8, atol=1e-12)


def convolutions(loss):
    """How many its graph has."""
    found, todo = set(), [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found.add(node)
            todo += [following for following, _ in node.next_functions]
    return sum(node.name().startswith("Convolution") for node in found)


def test_the_clean_graph_is_gone_before_the_backward(made):
    net, x, labels = made
    expected, _ = literal(net, x, labels)
    loss = step_of(net)(x, labels)["loss"]
    assert convolutions(expected) == 2 * convolutions(loss) > 0


@pytest.mark.parametrize("scale", [1.0, 0.25, 4096.0])
def test_the_loss_may_be_scaled_kept_and_used_twice(made, scale):
    net, x, labels = made
    loss, expected = literal(net, x, labels)
    loss.backward()
    out = (scale * step_of(net)(x, labels)["loss"]) + 1
    out.backward(retain_graph=True)
    assert_same(net, expected, scale)
    out.backward()
    assert_same(net, expected, 2 * scale)


def test_hooks_of_parameters_see_the_whole_gradient_once(made):
    net, x, labels = made
    loss, expected = literal(net, x, labels)
    seen = []

    def square(gradient):
        seen.append(gradient)
        return gradient.square()

    def triple(parameter):
        parameter.grad.mul_(3)

    for model in (net, expected):
        model.conv1.weight.register_hook(square)
        model.fc.weight.register_post_accumulate_grad_hook(triple)
    loss.backward()
    assert len(seen) == 1
    out = step_of(net)(x, labels)
    assert len(seen) == 1
    out["loss"].backward()
    assert len(seen) == 2
    assert_same(net, expected)


def test_clips_with_a_gradient(made):
    net, x, labels = made
    shift, shift_expected = (torch.zeros(3, 1, 1, dtype=torch.double, requires_grad=True) for _ in range(2))
    clean = copy.deepcopy(net)
    (0.7 * nn.functional.cross_entropy(clean(x + shift_expected), labels)).backward()
    out = step_of(net)(x + shift, labels)
    out["loss"].backward()
    torch.testing.assert_close(shift.grad, shift_expected.grad, rtol=1e-8, atol=1e-12)


class Prompted(Net):
    """Adds a parameter to the frames that is none of the module's."""

    prompt: list

    def features(self, x):
        return super().features(x + self.prompt[0])


def test_a_leaf_that_is_no_parameter_of_the_model(made):
    net, x, labels = made
    loss, expected = literal(net, x, labels)
    loss.backward()
    net.__class__ = Prompted
    net.prompt = [torch.zeros(3, 1, 1, dtype=torch.double, requires_grad=True)]
    out = step_of(net)(x, labels)
    out["loss"].backward()
    assert_same(net, expected)
    assert net.prompt[0].grad.abs().sum() > 0


def test_a_leaf_that_comes_later(made):
    net, x, labels = made
    net.__class__ = Prompted
    net.prompt = [torch.zeros(3, 1, 1, dtype=torch.double)]
    step = step_of(net)
    step(x, labels)["loss"].backward()
    net.prompt[0].requires_grad_()
    step(x, labels)["loss"].backward()
    assert net.prompt[0].grad.abs().sum() > 0


def test_some_parameters_train(made):
    net, x, labels = made
    loss, expected = literal(net, x, labels)
    loss.backward()
    net.conv1.requires_grad_(False)
    expected.conv1.weight.grad = None
    step = step_of(net)
    step(x, labels)["loss"].backward()
    assert net.conv1.weight.grad is None
    for name, parameter in expected.named_parameters():
        if not name.startswith("conv1"):
            torch.testing.assert_close(net.get_parameter(name).grad, parameter.grad, rtol=1e-8, atol=1e-12)


def test_a_gradient_of_the_gradient_is_refused(made):
    net, x, labels = made
    out = step_of(net)(x, labels)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(out["loss"], net.conv1.weight, create_graph=True)


@pytest.mark.parametrize("within", [False, True])
def test_float16_waits_for_the_scale(made, within):
    """Its clean gradients would vanish without the scale of the backward."""
    net, x, labels = made
    net = net.float()
    if within:
        forward = torch.autocast("cpu", torch.float16)(net.features)
        net.features = lambda x: forward(x).float()
    step = step_of(net)
    with torch.autocast("cpu", torch.float16, enabled=not within):
        out = step(x.float(), labels)
    # Of both forwards.
    assert convolutions(out["loss"]) == 2 * sum(isinstance(module, nn.Conv2d) for module in net.modules())


@pytest.mark.slow
def test_peak_memory():
    plain, some, every = (
        count_step("tsm_resnet18", batch_size=10, attacked=n, one_backward=True).peak_bytes
        for n in (None, 2, 10)
    )
    assert some <= 1.05 * plain and every <= 1.1 * plain
