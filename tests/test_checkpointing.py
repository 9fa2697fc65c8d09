"""Activation checkpointing changes no number: the step against a literal one without any."""

import copy
import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from reference.step import share_all_but_batch_norm, taf_losses
from reference.temporal_augment import clips_in_range
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from taf_fast import (
    AdvPropAugment,
    CrossEntropyAugment,
    TAFStep,
    TemporalAugment,
    adapt,
    add_adversarial_bn,
)

ATTACK = dict(epsilon=64 / 255, step_size=32 / 255, num_frames=2, denominator="max")
SEGMENTS = 4
PARTS = ("stem", "block", "tail")
FORMS = ["forward", "accumulate_grads"]


class Stem(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6)

    def forward(self, clips):
        return F.relu(self.bn(self.conv(clips.flatten(0, 1))))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(6, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6)

    def forward(self, x):
        video = x.view(-1, SEGMENTS, *x.shape[1:])
        later = F.pad(video[:, 1:, :2], (0, 0, 0, 0, 0, 0, 0, 1))
        mixed = torch.cat([later, video[:, :, 2:]], 2).flatten(0, 1)
        return F.relu(self.bn(self.conv(mixed)) + x).view_as(video)


class Tail(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = (
            nn.Conv3d(6, 8, (3, 1, 1), bias=False),
            nn.BatchNorm3d(8),
            nn.Linear(8, 5),
        )

    def forward(self, features):
        return self.fc(F.softplus(self.bn(self.conv(features.transpose(1, 2)))).mean((2, 3, 4)))


class Net(nn.Module):
    """Three parts with a batch norm each; those in ``recomputed`` are run again in the backward."""

    def __init__(self, recomputed=(), use_reentrant=False, saved=None):
        super().__init__()
        self.stem, self.block, self.tail = Stem(), Block(), Tail()
        self.recomputed, self.use_reentrant, self.saved = recomputed, use_reentrant, saved
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]), persistent=False)
        self.register_buffer("std", torch.tensor([0.2, 0.25, 0.3]), persistent=False)
        for norm in (self.stem.bn, self.block.bn, self.tail.bn):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.3)

    def _run(self, name, x):
        part = getattr(self, name)
        if name not in self.recomputed:
            return part(x)
        if self.use_reentrant and not x.requires_grad:  # such a part needs an input with gradient
            x = x.detach().requires_grad_()
        if self.saved is not None:
            selective = functools.partial(create_selective_checkpoint_contexts, self.saved)
            return checkpoint(part, x, use_reentrant=False, context_fn=selective)
        return checkpoint(part, x, use_reentrant=self.use_reentrant)

    def features(self, clips):
        return self._run("block", self._run("stem", clips))

    def head(self, features):
        return self._run("tail", features)

    def forward(self, clips):
        return self.head(self.features(clips))


class Whole(nn.Module):
    """The same without the names that make it a model in two parts."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, clips):
        return self.net(clips)


def make(generator, recomputed, use_reentrant=False, frozen=False):
    torch.manual_seed(generator.initial_seed())
    net = Net(recomputed, use_reentrant).double()
    net.tail.fc.weight.data *= 4
    x = clips_in_range(net, 6, SEGMENTS, 9, generator)
    plain = Net().double()
    plain.load_state_dict(net.state_dict())
    if frozen:
        for module in itertools.chain(net.modules(), plain.modules()):
            if isinstance(module, _BatchNorm):
                module.eval()
    predicted = copy.deepcopy(plain)(x).argmax(1)
    labels = torch.where(torch.arange(6) % 3 == 0, predicted, (predicted + 1) % 5)
    return net, plain, x, labels


CASES = [
    # recomputed, reentrant, attack_bn, steps, norms frozen, form, adapted
    *itertools.product([PARTS], [False, True], ["frozen", "batch"], [1], [False], FORMS, [False, True]),
    *itertools.product([("stem",)], [False, True], ["frozen", "batch"], [1], [False], FORMS[:1], [False]),
    *itertools.product(
        [("block", "tail")], [False], ["frozen", "batch"], [2], [False], FORMS[1:], [False, True]
    ),
    *itertools.product([PARTS], [False, True], ["frozen"], [1], [True], FORMS[:1], [False, True]),
]


@pytest.mark.parametrize("recomputed,use_reentrant,attack_bn,steps,norms_frozen,form,adapted", CASES)
def test_equals_the_step_without_recomputation(
    generator, recomputed, use_reentrant, attack_bn, steps, norms_frozen, form, adapted
):
    net, plain, x, labels = make(generator, recomputed, use_reentrant, norms_frozen)
    other = copy.deepcopy(plain)
    share_all_but_batch_norm(plain, other)
    rows = [1, 2, 4, 5]
    loss, _, _, certain = taf_losses(
        plain,
        other,
        x,
        labels,
        labels,
        rows,
        0.7,
        attack_bn="batch" if norms_frozen else attack_bn,  # the reference's "frozen" is for train mode
        steps=steps,
        **ATTACK,
    )
    loss.backward()
    assert certain.all()

    add_adversarial_bn(net)
    model = adapt(Whole(net), "net.block", SEGMENTS, net.mean, net.std) if adapted else net
    augment = TemporalAugment(**ATTACK, steps=steps, attack_bn=attack_bn, label="true")
    step = TAFStep(model, augment, 0.7, "wrong", compile=False)
    out = getattr(step, form)(x, labels)
    if form == "forward":
        out["loss"].backward()
    torch.testing.assert_close(out["loss"].detach(), loss.detach(), rtol=1e-10, atol=0)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(net.get_parameter(name).grad, parameter.grad, rtol=1e-8, atol=1e-12)
    for part in PARTS:
        twin, reference = (n.get_submodule(f"{part}.bn") for n in (net, other))
        for name, parameter in reference.named_parameters():
            own = twin.adversarial.get_parameter(name)
            torch.testing.assert_close(own.grad, parameter.grad, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("attack_bn", ["frozen", "batch"])
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("saved", ["convolution", "native_batch_norm"])
def test_selective_checkpointing(generator, saved, adapted, attack_bn, steps):
    net, plain, x, labels = make(generator, PARTS)
    net.saved = [getattr(torch.ops.aten, saved).default]
    for model in (net, plain):
        add_adversarial_bn(model)
        whole = adapt(Whole(model), "net.block", SEGMENTS, net.mean, net.std) if adapted else model
        augment = TemporalAugment(**ATTACK, steps=steps, attack_bn=attack_bn, label="true")
        TAFStep(whole, augment, compile=False)(x, labels)["loss"].backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(net.get_parameter(name).grad, parameter.grad, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("kind", [TemporalAugment, CrossEntropyAugment, AdvPropAugment])
def test_the_augmentations_alone(generator, kind, use_reentrant):
    net, plain, x, labels = make(generator, PARTS, use_reentrant)
    add_adversarial_bn(net), add_adversarial_bn(plain)
    actual, expected = (kind(steps=2)(model, x, labels, torch.Generator()) for model in (net, plain))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["function", "wrapper"])
def test_compiled_as_well(generator, uncompiled_graphs, how):
    """What is checkpointed runs as it is, between the graphs of what is not."""
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    net, plain, x, labels = make(generator, () if how == "wrapper" else ("block",))
    add_adversarial_bn(net), add_adversarial_bn(plain)
    if how == "wrapper":
        net.block = checkpoint_wrapper(net.block)
    augment = TemporalAugment(**ATTACK, label="true")
    TAFStep(plain, augment, compile=False)(x, labels)["loss"].backward()
    step = TAFStep(net, augment, compile=True)
    for _ in range(2):  # the second time from what was compiled
        step.zero_grad()
        step.accumulate_grads(x, labels)
        for parameter, expected in zip(net.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-8, atol=1e-12)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before
