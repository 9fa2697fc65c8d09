"""Norms, hooks and state of unusual kinds: the step equals the literal one, or refuses them by name."""

import copy
import functools
import pickle

import pytest
import torch
import torch.nn.functional as F
from literal_step import check_gradient
from reference.step import share_all_but_batch_norm, taf_losses
from reference.temporal_augment import Net, clips_in_range
from torch import nn
from torch.ao.quantization import disable_observer, fuse_modules_qat, get_default_qat_qconfig, prepare_qat
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from taf_fast import PlainStep, TAFStep, TemporalAugment, add_adversarial_bn

ATTACK = dict(epsilon=64 / 255, step_size=32 / 255, num_frames=2, denominator="max")


class Scaled(nn.BatchNorm2d):
    def forward(self, x):
        return 1.5 * super().forward(x) + 0.1


class Read(nn.Module):
    """Reads what a batch norm has, and does not call it."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        norm = self.norm
        statistics = norm.running_mean, norm.running_var
        return F.batch_norm(x, *statistics, norm.weight, norm.bias, norm.training, norm.momentum, norm.eps)


class Twice(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return self.norm(F.relu(self.norm(x)) * 0.7)


def with_norm(kind):
    def change(net):
        net.bn2 = kind(6)

    return change


def with_hook(register, hook):
    return lambda net: getattr(net.bn1, register)(hook)


def with_conv(wrap):
    def change(net):
        net.conv2 = wrap(net.conv2)

    return change


KINDS = {
    "a forward of its own": with_norm(Scaled),
    "read": with_norm(Read),
    "group norm": with_norm(functools.partial(nn.GroupNorm, 2)),
    "instance norm": with_norm(functools.partial(nn.InstanceNorm2d, affine=True, track_running_stats=True)),
    "synchronised": with_norm(nn.SyncBatchNorm),
    "forward hook": with_hook("register_forward_hook", lambda norm, args, y: y.sin()),
    "forward pre-hook": with_hook("register_forward_pre_hook", lambda norm, args: (args[0] ** 2,)),
    "backward hook": with_hook("register_full_backward_hook", lambda norm, to, of: (-2 * to[0],)),
    "spectral norm": with_conv(nn.utils.parametrizations.spectral_norm),
    "spectral norm by a hook": with_conv(nn.utils.spectral_norm),
    "weight norm": with_conv(nn.utils.parametrizations.weight_norm),
}


def make(generator, change):
    torch.manual_seed(generator.initial_seed())
    net = Net(segments=4)
    net.relu = nn.ReLU()  # a backward hook forbids changes in place
    change(net)
    net.double()
    return net, clips_in_range(net, 6, 4, 9, generator), torch.arange(6) % 5


def check_step(net, x, labels, attack_bn, form, close=check_gradient):
    """Losses, gradients and state, with all clips attacked."""
    clean, adversarial = copy.deepcopy(net), copy.deepcopy(net)
    share_all_but_batch_norm(clean, adversarial)
    for name, module in adversarial.named_modules():
        if not isinstance(module, _BatchNorm):
            module._buffers = clean.get_submodule(name)._buffers
    loss, _, _, certain = taf_losses(
        clean, adversarial, x, labels, labels, range(6), 0.7, **ATTACK, steps=1, attack_bn=attack_bn
    )
    assert certain.all()
    loss.backward()
    augment = TemporalAugment(**ATTACK, attack_bn=attack_bn, label="true")
    step = TAFStep(add_adversarial_bn(net), augment, 0.7, "all", compile=False)
    if form == "accumulate_grads":
        out = step.accumulate_grads(x, labels)
    else:
        out = step(x, labels)
        out["loss"].backward()
    close(out["loss"].detach(), loss.detach())
    for name, parameter in net.named_parameters():
        reference = adversarial if "adversarial" in name else clean
        close(parameter.grad, reference.get_parameter(name.replace(".adversarial.", ".")).grad)
    for name, buffer in net.named_buffers():
        reference = adversarial if "adversarial" in name else clean
        if buffer.is_floating_point():
            close(buffer, reference.get_buffer(name.replace(".adversarial.", ".")))


#: Of these the reference's attack with constant statistics, which runs the model twice, says nothing.
ONLY_BATCH = {"read", "spectral norm", "spectral norm by a hook"}


@pytest.mark.parametrize(
    "kind,attack_bn",
    [(kind, bn) for kind in KINDS for bn in ("frozen", "batch") if bn == "batch" or kind not in ONLY_BATCH],
)
@pytest.mark.parametrize("form", ["forward", "accumulate_grads"])
def test_equals_the_literal_step(generator, kind, attack_bn, form):
    net, x, labels = make(generator, KINDS[kind])
    check_step(net, x, labels, attack_bn, form)


def quantised(generator, fused):
    """With a range for every tensor."""
    torch.manual_seed(generator.initial_seed())
    net = Net(segments=4)
    x = clips_in_range(net, 6, 4, 9, generator).float()
    if fused:
        fuse_modules_qat(net, [["conv1", "bn1"], ["conv2", "bn2"]], inplace=True)
    net.qconfig = get_default_qat_qconfig("fbgemm")
    prepare_qat(net, inplace=True)
    net(x)
    return net, x, torch.arange(6) % 5


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("observed", [False, True])
def test_quantisation_aware_training(generator, fused, observed):
    net, x, labels = quantised(generator, fused)
    if not observed:
        net.apply(disable_observer)
    check_step(net, x, labels, "batch", "forward", check_rounded)


def check_rounded(actual, expected):
    """As far as 8 bits and signs of float32 allow."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0.03 * expected.abs().max().item())


def test_a_range_that_is_observed_belongs_to_the_batch(generator):
    net, x, labels = quantised(generator, True)
    step = TAFStep(add_adversarial_bn(net), TemporalAugment(), compile=False)
    with pytest.raises(ValueError, match=r"conv1.activation_post_process \(.*disable_observer"):
        step.accumulate_grads(x, labels)
    net.apply(disable_observer)
    step.accumulate_grads(x, labels)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [TAFStep, PlainStep])
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda step: pickle.loads(pickle.dumps(step)), lambda s: AveragedModel(s).module],
)
def test_a_copy_of_a_step_trains_the_copy(generator, uncompiled_graphs, kind, copied):
    net, x, labels = make(generator, lambda net: None)
    options = (TemporalAugment(label="true"),) if kind is TAFStep else ()
    step = kind(add_adversarial_bn(net), *options)
    other = copied(step)
    other(x, labels)["loss"].backward()
    assert all(parameter.grad is None for parameter in step.parameters())
    step(x, labels)["loss"].backward()
    for parameter, of_other in zip(step.parameters(), other.parameters(), strict=True):
        check_gradient(of_other.grad, parameter.grad)


def test_the_twins_train_alone(generator):
    net, x, labels = make(generator, lambda net: None)
    step = TAFStep(add_adversarial_bn(net), TemporalAugment(label="true"), compile=False)
    expected = copy.deepcopy(step)
    expected.accumulate_grads(x, labels)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_("adversarial" in name)
    step.accumulate_grads(x, labels)
    for name, parameter in net.named_parameters():
        wanted = expected.model.get_parameter(name).grad if "adversarial" in name else None
        check_gradient(parameter.grad, wanted)
    with pytest.raises(RuntimeError, match="no parameter of the model requires one"):
        TAFStep(net.requires_grad_(False), TemporalAugment(), compile=False).accumulate_grads(x, labels)


def test_a_norm_without_channels_yet(generator):
    net, *_ = make(generator, lambda net: None)
    net.bn2 = nn.LazyBatchNorm2d()
    with pytest.raises(ValueError, match=r"'bn2' \(LazyBatchNorm2d\) has no channels before its first forw"):
        add_adversarial_bn(net)
    assert "adversarial" not in net.bn1._modules


@pytest.mark.slow
@pytest.mark.parametrize("made", ["in place", "scripted"])
def test_parts_that_were_compiled_alone(generator, uncompiled_graphs, made):
    """The replay looks for their operations."""
    net, x, labels = make(generator, lambda net: None)
    plain = copy.deepcopy(net)
    if made == "in place":
        net.conv2.compile(backend="aot_eager")
    else:
        net.conv2 = torch.jit.script(net.conv2)
    for model in (net, plain):
        augment = TemporalAugment(**ATTACK, label="true")
        TAFStep(add_adversarial_bn(model), augment, 0.7, "all", compile=False).accumulate_grads(x, labels)
    for name, parameter in plain.named_parameters():
        check_gradient(net.get_parameter(name).grad, parameter.grad)


@pytest.mark.parametrize(
    "chosen", [torch.tensor([3, 5]), torch.ones(6), torch.ones(6, 5) > 0, [True] * 6, torch.ones(2) > 0]
)
def test_a_composition_says_yes_or_no_of_every_clip(generator, chosen):
    net, x, labels = make(generator, lambda net: None)
    step = TAFStep(add_adversarial_bn(net), TemporalAugment(), 0.7, lambda *_: chosen, compile=False)
    with pytest.raises(ValueError, match="composition must return a bool for each of 6 clips"):
        step.accumulate_grads(x, labels)
    assert all(parameter.grad is None for parameter in net.parameters())
