"""Dual batch norm: two sets of layers, one set of weights, and nothing left after stripping."""

import copy
import subprocess
import sys

import pytest
import torch
from reference.temporal_augment import Net, clips_in_range
from torch import nn

from taf_fast import add_adversarial_bn, adversarial_path, models, strip_adversarial_bn


def make(generator, **options):
    torch.manual_seed(generator.initial_seed())
    net = Net(segments=4, **options).double()
    return net, clips_in_range(net, 3, 4, 9, generator)


def test_paths_normalise_apart(generator):
    net, x = make(generator, deep_head=True)
    twin = copy.deepcopy(net)
    add_adversarial_bn(net)
    other = clips_in_range(net, 3, 4, 9, generator) * 2
    for _ in range(3):
        clean = net(x)
        with adversarial_path(net):
            adversarial = net(other)
    # Each path equals a separate model that saw only the clips of this path.
    alone = copy.deepcopy(twin)
    for _ in range(3):
        assert torch.equal(alone(x), clean)
    for name, value in alone.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name
    for _ in range(3):
        assert torch.equal(twin(other), adversarial)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(net.bn2.adversarial, name), getattr(twin.bn2, name))
    net.eval(), alone.eval(), twin.eval()
    with adversarial_path(net):
        assert torch.equal(net(x), twin(x))
    assert torch.equal(net(x), alone(x))


def test_twins_start_as_copies_and_train_apart(generator):
    net, x = make(generator)
    net(x)
    add_adversarial_bn(net)
    assert torch.equal(net.bn1.adversarial.weight, net.bn1.weight)
    assert torch.equal(net.bn1.adversarial.running_mean, net.bn1.running_mean)
    with adversarial_path(net):
        net(x).sum().backward()
    assert net.bn1.weight.grad is None and net.bn1.adversarial.weight.grad is not None
    assert net.conv1.weight.grad is not None


@pytest.mark.parametrize("build", [lambda: Net(deep_head=True), lambda: models.build("tsm_resnet18", 4, 4)])
def test_strip_gives_back_exactly_the_model(build):
    net = build()
    keys, types = list(net.state_dict()), [type(m) for m in net.modules()]
    parameters = [id(p) for p in net.parameters()]
    add_adversarial_bn(net)
    assert set(keys) < set(net.state_dict())
    strip_adversarial_bn(net)
    assert list(net.state_dict()) == keys
    assert [type(m) for m in net.modules()] == types
    assert [id(p) for p in net.parameters()] == parameters
    assert not hasattr(net, "adversarial")
    add_adversarial_bn(net)


def test_shared_and_synchronised_and_nested_norms():
    norm = nn.BatchNorm1d(3)
    net = nn.Sequential(norm, nn.Sequential(norm, nn.SyncBatchNorm(3), nn.BatchNorm3d(3)))
    add_adversarial_bn(net)
    assert net[0] is net[1][0] and isinstance(net[1][1], nn.SyncBatchNorm)
    assert sum(name.endswith("adversarial.weight") for name in net.state_dict()) == 4
    strip_adversarial_bn(net)
    assert [type(m) for m in net[1]] == [nn.BatchNorm1d, nn.SyncBatchNorm, nn.BatchNorm3d]


def test_path_ends_with_its_context():
    net = add_adversarial_bn(Net())
    with pytest.raises(RuntimeError, match="boom"), adversarial_path(net):
        with adversarial_path(net):
            pass
        assert net.bn1.on_adversarial_path
        raise RuntimeError("boom")
    assert not net.bn1.on_adversarial_path


def test_follows_train_eval_copy_and_dtype():
    net = add_adversarial_bn(Net())
    copied = copy.deepcopy(net).double().eval()
    assert not copied.bn1.adversarial.training and copied.bn1.adversarial.weight.dtype == torch.float64
    assert net.bn1.adversarial.training
    assert copied.bn1.adversarial.weight is not net.bn1.adversarial.weight


@pytest.mark.slow
def test_a_whole_model_goes_to_another_process(generator, tmp_path):
    """Pickles, as torch.save and multiprocessing's spawn do."""
    torch.manual_seed(generator.initial_seed())
    net = add_adversarial_bn(models.build("tsm_resnet18", 4, 2)).double()
    x = clips_in_range(net, 2, 2, 33, generator)
    with adversarial_path(net):
        net(x)  # the statistics part
    torch.save((net.eval(), x), tmp_path / "net.pt")
    program = """
import sys, torch, taf_fast
net, x = torch.load(sys.argv[1], weights_only=False)
with taf_fast.adversarial_path(net):
    adversarial = net(x)
torch.save((adversarial, net(x), taf_fast.strip_adversarial_bn(net).state_dict()), sys.argv[2])
"""
    subprocess.run([sys.executable, "-c", program, tmp_path / "net.pt", tmp_path / "out.pt"], check=True)
    theirs, clean, state = torch.load(tmp_path / "out.pt")
    assert torch.equal(clean, net(x)) and not torch.equal(clean, theirs)
    with adversarial_path(net):
        assert torch.equal(theirs, net(x))
    assert state.keys() == strip_adversarial_bn(net).state_dict().keys()


def test_a_model_without_batch_norm_has_one_path():
    net = add_adversarial_bn(nn.Linear(2, 2))
    with adversarial_path(net):
        net(torch.zeros(1, 2))
    assert list(strip_adversarial_bn(net).state_dict()) == ["weight", "bias"]


def test_errors():
    net = Net()
    with (
        pytest.raises(ValueError, match="'bn1' has no adversarial twin: call taf_fast.add_adversarial_bn"),
        adversarial_path(net),
    ):
        pass
    add_adversarial_bn(net)
    with pytest.raises(ValueError, match="already"):
        add_adversarial_bn(net)
