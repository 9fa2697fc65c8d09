"""Models whose clips cannot be attacked alone are refused by name; what a forward changes is put back."""

import copy

import pytest
import torch
import torch.nn.functional as F
from reference.temporal_augment import Net, attack, clips_in_range
from torch import nn
from torch.utils.checkpoint import checkpoint

from taf_fast import TAFStep, TemporalAugment, adapt, add_adversarial_bn
from taf_fast.augment import running_statistics_untouched


class ByTorch(nn.BatchNorm2d):
    """Calls the operation below the function."""

    def forward(self, x):
        mean, var = (self.running_mean, self.running_var) if self.track_running_stats else (None, None)
        return torch.batch_norm(
            x, self.weight, self.bias, mean, var, self.training, 0.1, self.eps, torch.backends.cudnn.enabled
        )


class ByHand(nn.BatchNorm2d):
    def forward(self, x):
        if not self.training:
            return super().forward(x)
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        with torch.no_grad():
            self.running_mean.lerp_(mean, 0.1)
            self.running_var.lerp_(var, 0.1)
        shape = (1, -1, 1, 1)
        normalised = (x - mean.view(shape)) * (var + self.eps).rsqrt().view(shape)
        return normalised * self.weight.view(shape) + self.bias.view(shape)


class Split(nn.BatchNorm2d):
    """Each half of the batch has statistics of its own, as in timm's split batch norm."""

    def __init__(self, channels):
        super().__init__(channels)
        self.second = nn.BatchNorm2d(channels)

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        first, second = x.chunk(2)
        return torch.cat([super().forward(first), self.second(second)])


class Unrelated(nn.Module):
    """No batch norm by class, and none by what it stores."""

    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        return x / x.std((0, 2, 3), keepdim=True)


def make(generator, norm=None):
    torch.manual_seed(generator.initial_seed())
    net = Net(segments=4)
    if norm is not None:
        net.bn2 = norm
    net.double()
    return net, clips_in_range(net, 6, 4, 9, generator), torch.arange(6) % 5


@pytest.mark.parametrize("kind", [ByTorch, ByHand, Split, Unrelated])
def test_norms_of_other_kinds_are_refused_by_name(generator, kind):
    net, x, labels = make(generator, kind(6))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r"bn2.* \(.*attack_bn='batch'"):
        TemporalAugment()(net, x, labels)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    step = TAFStep(add_adversarial_bn(net), TemporalAugment(), compile=False)
    with pytest.raises(ValueError, match=r"bn2"):
        step.accumulate_grads(x, labels)
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_they_are_in_16_bits_too(generator, dtype, autocast):
    net, x, labels = make(generator, ByTorch(6))
    parts = net.float() if autocast else net.to(dtype)
    x = x.to(torch.float32 if autocast else dtype)
    with torch.autocast("cpu", dtype, enabled=autocast), pytest.raises(ValueError, match=r"bn2 \("):
        TemporalAugment()(parts, x, labels)
    with torch.autocast("cpu", dtype, enabled=autocast):
        parts.bn2 = nn.BatchNorm2d(6).to(x.dtype)
        TemporalAugment()(parts, x, labels)


class DropPath(nn.Module):
    """Stochastic depth, as timm's."""

    def forward(self, x):
        return x * x.new_empty(len(x), 1, 1, 1).bernoulli_(0.5) / 0.5


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("random", [nn.Dropout, nn.Dropout2d, nn.AlphaDropout, DropPath])
def test_dropout_hides_no_norm(generator, random, adapted):
    net, x, labels = make(generator, nn.Sequential(ByTorch(6), random()))
    model = adapt(net, "bn2", 4, net.mean, net.std) if adapted else net
    with pytest.raises(ValueError, match=r"bn2.0 \(ByTorch\).*attack_bn='batch'"):
        TemporalAugment()(model, x, labels)


def test_randomness_in_the_head_hides_no_norm_of_the_features(generator):
    net, x, labels = make(generator, ByTorch(6))
    net.fc.register_forward_pre_hook(lambda _, args: args[0] + torch.randn_like(args[0]))
    with pytest.raises(ValueError, match=r"bn2 \(ByTorch\)"):
        TemporalAugment()(net, x, labels)


def test_an_attack_on_the_whole_batch_vouches_for_no_clip_alone(generator):
    net, x, labels = make(generator, ByTorch(6))
    TemporalAugment(attack_bn="batch")(net, x, labels)
    with pytest.raises(ValueError, match=r"bn2 \(ByTorch\)"):
        TemporalAugment()(net, x, labels)
    net, x, labels = make(generator)
    TemporalAugment()(net, x, labels)
    TemporalAugment(attack_bn="batch")(net, x, labels)


class EveryFrame(nn.Module):
    """A norm that runs once for each frame of the clips."""

    def __init__(self, channels):
        super().__init__()
        self.norm, self.frames = nn.BatchNorm2d(channels), 4

    def forward(self, x):
        frames = x.view(-1, self.frames, *x.shape[1:]).unbind(1)
        return torch.stack([F.relu(self.norm(frame)) for frame in frames], 1).flatten(0, 1)


def test_clips_of_another_length_run_other_norms(generator):
    net, x, labels = make(generator, EveryFrame(6))
    augment = TemporalAugment(label="true")
    for frames in (4, 3):
        net.bn2.frames = net.segments = frames
        again = copy.deepcopy(net)
        x = x[:, :frames]
        assert torch.equal(augment(net, x, labels), augment(again, x, labels))


def test_a_model_of_other_parts_is_examined_anew(generator):
    net, x, labels = make(generator)
    TemporalAugment()(net, x, labels)
    net.bn2 = ByTorch(6).double()
    with pytest.raises(ValueError, match=r"bn2 \(ByTorch\)"):
        TemporalAugment()(net, x, labels)


class Switched(nn.Module):
    """Checkpointed, as long as a trainer wants that."""

    def __init__(self, channels):
        super().__init__()
        self.norm, self.on = nn.BatchNorm2d(channels), True

    def forward(self, x):
        return checkpoint(self.norm, x, use_reentrant=False) if self.on else self.norm(x)


def test_checkpointing_may_be_switched(generator):
    net, x, labels = make(generator, Switched(6))
    augment = TemporalAugment(label="true")
    expected = augment(net, x, labels)
    for net.bn2.on in (False, True):
        torch.testing.assert_close(augment(net, x, labels), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [ByTorch, ByHand, Split])
def test_the_attack_through_the_statistics_takes_them_all(generator, kind):
    net, x, labels = make(generator, kind(6))
    options = dict(epsilon=64 / 255, step_size=32 / 255, steps=2, num_frames=2, denominator="max")
    expected, certain = attack(copy.deepcopy(net), x, labels, range(6), attack_bn="batch", **options)
    before = copy.deepcopy(net.state_dict())
    actual = TemporalAugment(**options, attack_bn="batch", label="true")(net, x, labels)
    torch.testing.assert_close(actual[certain], expected[certain], rtol=0, atol=1e-12)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("kind", [ByTorch, ByHand, Split])
def test_they_are_fine_with_running_statistics(generator, kind):
    net, x, labels = make(generator, kind(6))
    net.eval()
    options = dict(epsilon=64 / 255, step_size=32 / 255, steps=1, num_frames=2, denominator="max")
    expected, certain = attack(net, x, labels, range(6), attack_bn="batch", **options)
    actual = TemporalAugment(**options, label="true")(net, x, labels)
    torch.testing.assert_close(actual[certain], expected[certain], rtol=0, atol=1e-12)


def test_a_norm_with_statistics_of_another_class_has_no_twin(generator):
    class Activated(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(6))
            self.register_buffer("running_var", torch.ones(6))

        def forward(self, x):
            return F.leaky_relu(F.batch_norm(x, self.running_mean, self.running_var, training=True))

    net, *_ = make(generator, Activated())
    with pytest.raises(ValueError, match=r"'bn2' \(Activated\).*no batch norm of torch's"):
        TAFStep(add_adversarial_bn(net), TemporalAugment())


def test_a_second_input_in_a_closure_is_refused(generator):
    net, x, labels = make(generator)
    flow = torch.rand(6, 5, dtype=torch.float64)
    model = adapt(net, "bn2", 4, net.mean, net.std, call=lambda net, x: net(x) + flow)
    with pytest.raises(ValueError, match="only input are the clips"):
        TemporalAugment()(model, x, labels)


def test_dropout_is_no_dependence_among_clips(generator):
    net, x, labels = make(generator, nn.Sequential(nn.BatchNorm2d(6), nn.Dropout(0.5)))
    before = torch.get_rng_state()
    TemporalAugment(label="true").check(net, x, labels)
    assert torch.equal(torch.get_rng_state(), before)


class Counting(nn.Module):
    """State of all kinds: a counter in a buffer, replaced or changed in place, and one that is a number."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels, affine=True, track_running_stats=True)
        self.register_buffer("replaced", torch.tensor(0))
        self.register_buffer("in_place", torch.tensor(0))
        self.calls = 0
        self.conv = nn.utils.parametrizations.spectral_norm(nn.Conv2d(channels, channels, 1))

    def forward(self, x):
        self.replaced = self.replaced + 1
        self.in_place += 1
        self.calls += 1
        return self.conv(self.norm(x))


@pytest.mark.parametrize("attack_bn", ["frozen", "batch"])
def test_all_state_is_put_back(generator, attack_bn):
    net, x, labels = make(generator, Counting(6))
    for _ in range(2):  # the second time, only what changes is kept
        before = copy.deepcopy(net.state_dict())
        TemporalAugment(steps=2, attack_bn=attack_bn)(net, x, labels)
        for name, value in net.state_dict().items():
            assert torch.equal(value, before[name]), name
        assert net.bn2.calls == 0
    step = TAFStep(add_adversarial_bn(net), TemporalAugment(steps=2, attack_bn=attack_bn), 0.7, "all", False)
    step.accumulate_grads(x, labels)
    assert net.bn2.calls == net.bn2.in_place == net.bn2.replaced == 2  # the clean and the adversarial forward


def test_the_state_is_put_back_for_others_too(generator):
    net, x, _ = make(generator, Counting(6))
    before = copy.deepcopy(net.state_dict())
    with running_statistics_untouched(net):
        net(x)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert net.bn2.calls == 0 and net.bn1.track_running_stats
