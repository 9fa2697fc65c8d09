"""Sharded and wrapped steps in one process: the lean form, and what is refused before the first step."""

import copy
from functools import partial

import pytest
import torch
import torch.distributed as dist
from literal_step import whole
from reference.temporal_augment import Net, clips_in_range
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from taf_fast import TAFStep, TemporalAugment, add_adversarial_bn


@pytest.fixture
def alone():
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("part", ["conv2", ""])
@pytest.mark.parametrize("form", ["forward", "accumulate_grads"])
@pytest.mark.parametrize("before", [False, True])
def test_a_sharded_part_of_the_model_is_refused(alone, generator, part, form, before):
    net = add_adversarial_bn(Net().double())
    x, labels = clips_in_range(net, 4, 4, 9, generator), torch.zeros(4, dtype=torch.int64)
    name = "part 'conv2' of the model" if part else "the model"
    message = f"^{name} is sharded, .*: shard the step as a whole, fully_shard"
    if before:
        fully_shard(net.get_submodule(part))
        with pytest.raises(ValueError, match=message):
            TAFStep(net, TemporalAugment(), compile=False)
        return
    step = TAFStep(net, TemporalAugment(), compile=False)
    fully_shard(net.get_submodule(part))
    with pytest.raises(ValueError, match=message):
        getattr(step, form)(x, labels)
    assert all(parameter.grad is None for parameter in net.parameters())


def gradients(step):
    return {name: None if p.grad is None else whole(p.grad) for name, p in step.model.named_parameters()}


@pytest.mark.parametrize("wrap", [fully_shard, partial(DistributedDataParallel, broadcast_buffers=False)])
def test_one_graph_at_a_time_and_nothing_half_added_after_an_error(alone, generator, monkeypatch, wrap):
    net = add_adversarial_bn(Net().double())
    x, labels = clips_in_range(net, 4, 4, 9, generator), torch.arange(4)
    plain = TAFStep(copy.deepcopy(net), TemporalAugment(label="true"), composition="all", compile=False)
    plain(x, labels)["loss"].backward()
    inner = TAFStep(net, TemporalAugment(label="true"), composition="all", compile=False)
    step = wrap(inner)

    def take():
        if step is inner:
            return step.accumulate_grads(x, labels)
        out = step(x, labels, backward=torch.Tensor.backward)
        out["loss"].backward()
        return out

    def after_the_clean_backward(*args, **options):
        assert net.conv1.weight.grad is not None and net.bn1.adversarial.weight.grad is None
        raise KeyError("in the attack")

    with monkeypatch.context() as patched:
        patched.setattr(inner.augment, "attack", after_the_clean_backward)
        with pytest.raises(KeyError, match="in the attack"):
            take()
    assert not any(gradient is not None for gradient in gradients(inner).values())
    take()
    expected = gradients(plain)
    for name, gradient in gradients(inner).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-8, atol=1e-12)


def test_a_static_graph_has_one_backward(alone, generator):
    net = add_adversarial_bn(Net().double())
    x, labels = clips_in_range(net, 4, 4, 9, generator), torch.arange(4)
    step = TAFStep(net, TemporalAugment(), compile=False)
    step = DistributedDataParallel(step, broadcast_buffers=False, static_graph=True)
    with pytest.raises(ValueError, match="static_graph=True. counts the gradients of one backward"):
        step(x, labels, backward=torch.Tensor.backward)
    step(x, labels)["loss"].backward()
