"""Gradients averaged during the backward, and steps in parts; ``test_distributed.py`` compares ranks."""

import contextlib
import copy

import pytest
import torch
import torch.distributed as dist
from reference.temporal_augment import Net, clips_in_range

from taf_fast import PlainStep, TAFStep, TemporalAugment, add_adversarial_bn
from taf_fast.data import Batch
from taf_fast.process import ranks
from taf_fast.run.config import FinetuneConfig
from taf_fast.run.parts import build
from taf_fast.run.reduction import ReducedStep
from taf_fast.run.unsettled import Measured, Unsettled


@pytest.fixture
def alone():
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def places(step, net):
    """The bucket and the place in it of every gradient, which must be there."""
    step.zero_grad()
    storages = [parameter.grad.untyped_storage().data_ptr() for parameter in net.parameters()]
    buckets = list(dict.fromkeys(storages))
    places = [parameter.grad.storage_offset() for parameter in net.parameters()]
    return list(zip(map(buckets.index, storages), places, strict=True))


def test_where_a_gradient_lies_does_not_depend_on_the_clips(alone, generator):
    net = add_adversarial_bn(Net().double())
    x, labels = clips_in_range(net, 4, 4, 9, generator), torch.arange(4)
    found = []
    for composition in (lambda logits, y: y < 0, lambda logits, y: y >= 0):
        here = copy.deepcopy(net)
        step = ReducedStep(TAFStep(here, TemporalAugment(), 0.7, composition, compile=False), [], "float32")
        step.accumulate_grads(x, labels)
        first = places(step, here)
        step.accumulate_grads(x, labels)
        found += [first, places(step, here)]
    assert all(other == found[0] for other in found) and len(set(found[0])) == len(found[0])
    # The last parameters come first: the backward reaches them first.
    assert found[0][-1] == min(found[0])


def test_a_plain_step_and_a_parameter_that_it_does_not_use(alone, generator):
    net = Net().double()
    net.unused = torch.nn.Linear(3, 3)
    x, labels = clips_in_range(net, 4, 4, 9, generator), torch.arange(4)
    other = copy.deepcopy(net)
    PlainStep(other, compile=False).accumulate_grads(x, labels)
    step = ReducedStep(PlainStep(net, compile=False), [], "float32")
    for _ in range(2):
        step.zero_grad()
        step.accumulate_grads(x, labels)
    for (name, parameter), expected in zip(net.named_parameters(), other.parameters(), strict=True):
        if name.startswith("unused"):
            assert not parameter.grad.any()
        else:
            torch.testing.assert_close(parameter.grad, expected.grad)


def test_shares():
    assert ranks.share(12, 3) == 4
    with pytest.raises(ValueError, match="multiple of 5, the ranks that share it times the 5 parts of each"):
        ranks.share(12, 5)


@pytest.mark.slow
@pytest.mark.parametrize("clips", [4, 3, 1])
@pytest.mark.parametrize("augment", ["ta", "none"])
def test_a_step_in_parts(dataset, tmp_path, augment, clips):
    """Gradients and numbers of the parts, weighted by their clips, with the norms of each part."""
    config = FinetuneConfig(
        data=dataset,
        out=tmp_path,
        model="tsm_resnet18",
        size=32,
        batch_size=4,
        lr=1e-4,
        accumulate=2,
        augment=augment,
        composition="all",
        dropout=0,
        clip_grad=None,
    )
    with contextlib.ExitStack() as stack:
        run = build(config, stack, trust_checkpoint=False)
        batch = next(iter(run.train))
        batch = Batch(batch.clips[:clips], batch.labels[:clips], batch.ids[:clips], 0.0)
        x, y = batch.clips, batch.labels
        # A step takes all its parts, whatever has become of its clips.
        parts = {
            4: [(x[:2], y[:2]), (x[2:], y[2:])],
            3: [(x[:2], y[:2]), (x[2:], y[2:])],
            1: [(x, y), (x, y)],
        }
        other, generator = copy.deepcopy(run.optimizer_step.step), run.generator.get_state()
        measured: list[Measured] = []
        unsettled = Unsettled(measured.append)
        unsettled.add(run.optimizer_step.take(batch, number=1))
        unsettled.settle()

        draws = torch.Generator()
        draws.set_state(generator)
        loss, total = 0.0, sum(len(labels) for _, labels in parts[clips])
        other.zero_grad()
        for part, labels in parts[clips]:
            out = other(part, labels, draws)
            (out["loss"] * len(labels) / total).backward()
            loss += out["loss"].item() * len(labels) / total
        assert measured[0].values["loss"] == pytest.approx(loss, rel=1e-5)
        assert measured[0].values.get("attacked", total) == total
        for mine, reference in zip(run.model.parameters(), other.model.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, reference.grad, rtol=1e-3, atol=1e-5)
