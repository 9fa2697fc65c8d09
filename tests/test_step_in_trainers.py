"""What trainers do with a step: compile it, scale its loss, wrap, convert and average its model."""

import copy

import pytest
import torch
import torch.distributed as dist
from reference.step import losses_at, share_all_but_batch_norm
from reference.temporal_augment import Net, attack, clips_in_range
from torch import nn
from torch.optim.swa_utils import update_bn

from taf_fast import (
    AdvPropAugment,
    NoiseAugment,
    TAFStep,
    TemporalAugment,
    adapt,
    add_adversarial_bn,
    strip_adversarial_bn,
)
from taf_fast.augment import CleanForward, Rows
from taf_fast.models.pixels import to_model_input

ATTACK = dict(epsilon=64 / 255, step_size=32 / 255, steps=1, num_frames=2, denominator="max")


class VectorNorm(nn.Module):
    """A classifier with a batch norm over one vector per clip."""

    def __init__(self, channels, classes):
        super().__init__()
        self.norm, self.fc = nn.BatchNorm1d(channels), nn.Linear(channels, classes)

    def forward(self, x):
        return self.fc(self.norm(x.mean(1)))


class VectorNet(Net):
    def __init__(self):
        super().__init__(segments=4)
        self.fc = VectorNorm(6, 5)

    def head(self, features):
        return self.fc(features.mean((3, 4)))


def make(generator, kind=Net):
    torch.manual_seed(generator.initial_seed())
    generator.manual_seed(generator.initial_seed())
    net = (Net(segments=4) if kind is Net else kind()).double()
    x = clips_in_range(net, 6, 4, 9, generator)
    predicted = copy.deepcopy(net)(x).argmax(1)
    labels = torch.where(torch.arange(6) % 3 == 0, predicted, (predicted + 1) % 5)
    return net, x, labels


def step_of(net, **options):
    return TAFStep(add_adversarial_bn(net), TemporalAugment(**ATTACK, label="true"), **options)


def grads(net):
    return {name: parameter.grad.clone() for name, parameter in net.named_parameters()}


def expect_equal(actual, expected, scale=1.0):
    assert actual.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(actual[name], scale * grad, rtol=1e-8, atol=1e-12)


@pytest.fixture
def expected(generator):
    """The gradients without anything around the step."""
    net, x, labels = make(generator)
    step_of(net, compile=False)(x, labels)["loss"].backward()
    return grads(net)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torch.compile", "module.compile", "within"])
def test_an_outer_compile_runs_the_step_as_it_is(generator, expected, form):
    net, x, labels = make(generator)
    step = step_of(net, compile=False)
    if form == "torch.compile":
        out = torch.compile(step)(x, labels)
    elif form == "module.compile":
        step.compile()
        out = step(x, labels)
    else:
        out = torch.compile(lambda x: step(x * 1, labels))(x)
    out["loss"].backward()
    expect_equal(grads(net), expected)


class Named(nn.Module):
    """The network with a name for its features."""

    def __init__(self, net):
        super().__init__()
        self.net, self.last = net, nn.Identity()

    def forward(self, x):
        return self.net.head(self.last(self.net.features(x)))


def test_adapt_looks_through_a_compiled_module(generator, expected):
    net, x, labels = make(generator)
    whole = Named(net)
    model = adapt(torch.compile(whole), "last", 4, net.mean, net.std)
    step_of(model, compile=False)(x, labels)["loss"].backward()
    expect_equal(grads(net), expected)
    whole.last = torch.compile(nn.Sequential(nn.Identity()))
    with pytest.raises(ValueError, match="within a module that torch.compile made"):
        adapt(whole, "last._orig_mod.0", 4)


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_a_backward_of_the_trainer(generator, expected, scale):
    net, x, labels = make(generator)
    parts = []

    def backward(loss):
        parts.append(loss.item())
        (scale * loss).backward()

    out = step_of(net, compile=False).accumulate_grads(x, labels, backward=backward)
    expect_equal(grads(net), expected, scale)
    assert sum(parts) == pytest.approx(out["loss"].item())


@pytest.mark.parametrize("accumulated", [False, True])
def test_an_error_leaves_the_gradients_as_they_were(generator, monkeypatch, expected, accumulated):
    net, x, labels = make(generator)
    step = step_of(net, compile=False)
    if accumulated:
        step.accumulate_grads(x, labels)
    before = [p.grad for p in net.parameters()]
    values = [None if grad is None else grad.clone() for grad in before]

    def fail(*args, **options):
        raise RuntimeError("in the attack")

    with monkeypatch.context() as patched:
        patched.setattr(step.augment, "attack", fail)
        with pytest.raises(RuntimeError, match="in the attack"):
            step.accumulate_grads(x, labels)
    for parameter, grad, value in zip(net.parameters(), before, values, strict=True):
        assert parameter.grad is grad and (grad is None or torch.equal(grad, value))
    if accumulated:  # two batches' gradients add up, in the same tensors
        step.accumulate_grads(x, labels)
        assert all(p.grad is grad for p, grad in zip(net.parameters(), before, strict=True))
        expect_equal(grads(net), dict(zip(expected, values, strict=True)), 2.0)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", ["forward", "accumulate_grads"])
def test_one_attacked_clip_before_a_norm_over_vectors(generator, form, compiled, uncompiled_graphs):
    """That norm takes its running statistics, and leaves them as they are; all others are as ever."""
    net, x, labels = make(generator, VectorNet)
    predicted = copy.deepcopy(net)(x).argmax(1)
    labels = torch.where(torch.arange(6) == 2, (predicted + 1) % 5, predicted)
    clean, adversarial = copy.deepcopy(net), copy.deepcopy(net)
    share_all_but_batch_norm(clean, adversarial)
    adversarial.fc.norm.eval()
    x_adv, certain = attack(clean, x, labels, [2], attack_bn="frozen", **ATTACK)
    assert certain.all()
    loss, *_ = losses_at(clean, adversarial, x, x_adv, labels, [2], 0.7)
    loss.backward()
    out = getattr(step_of(net, compile=compiled), form)(x, labels)
    if form == "forward":
        out["loss"].backward()
    assert out["attacked"] == 1 and out["by_running_statistics"] == 1
    for name, parameter in clean.named_parameters():
        torch.testing.assert_close(net.get_parameter(name).grad, parameter.grad, rtol=1e-8, atol=1e-12)
    twin, reference = net.fc.norm.adversarial, adversarial.fc.norm
    torch.testing.assert_close(twin.weight.grad, reference.weight.grad, rtol=1e-8, atol=1e-12)
    assert twin.training and twin.num_batches_tracked == 0 and not twin.running_mean.any()
    assert net.bn1.adversarial.num_batches_tracked == 1


def test_two_attacked_clips_need_no_running_statistics(generator):
    net, x, labels = make(generator, VectorNet)
    out = step_of(net, composition="all", compile=False).accumulate_grads(x, labels)
    assert out["by_running_statistics"] == 0 and net.fc.norm.adversarial.num_batches_tracked == 1


@pytest.mark.parametrize("form", ["forward", "accumulate_grads"])
def test_a_step_walks_through_the_model_once(generator, monkeypatch, form):
    net, x, labels = make(generator)
    step = step_of(net, compile=False)
    step.accumulate_grads(x, labels)  # the first one examines the model
    walks, named_modules = [], nn.Module.named_modules

    def counted(module, *args, **options):
        walks.append(module)
        return named_modules(module, *args, **options)

    monkeypatch.setattr(nn.Module, "named_modules", counted)
    getattr(step, form)(x, labels)
    assert walks.count(net) == 1


def test_norms_converted_after_the_twins_came(generator):
    net, *_ = make(generator)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(add_adversarial_bn(net))
    for use in (add_adversarial_bn, lambda net: TAFStep(net, TemporalAugment())):
        with pytest.raises(ValueError, match=r"'bn1' became a SyncBatchNorm.*convert the model first"):
            use(converted)
    assert not any("adversarial.adversarial" in name for name in converted.state_dict())


def test_the_step_is_wrapped_not_its_model(generator, tmp_path):
    net, *_ = make(generator)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(add_adversarial_bn(net))
        with pytest.raises(ValueError, match=r"DistributedDataParallel\(TAFStep\(model, ...\)\)"):
            TAFStep(wrapped, TemporalAugment())
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_where_there_are_no_gradients(generator, mode):
    net, x, labels = make(generator)
    step = step_of(net, compile=False)
    with mode(), pytest.raises(RuntimeError, match=f"torch.{mode.__name__}"):
        step.accumulate_grads(x, labels)


def test_an_optimiser_from_before_the_twins(generator):
    net, x, labels = make(generator)
    before = torch.optim.SGD(net.parameters(), lr=0.1)
    step = step_of(net, compile=False)
    step.accumulate_grads(x, labels)
    weights = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r"no optimiser has bn1.adversarial.weight.*after taf_fast.add"):
        before.step()
    for name, value in net.state_dict().items():
        assert torch.equal(value, weights[name])
    twins = [p for name, p in net.named_parameters() if ".adversarial." in name]
    of_twins = torch.optim.SGD(twins, lr=0.1)
    before.step()  # now another one trains them
    of_twins.step()
    torch.optim.AdamW(net.parameters()).step()


def test_update_bn_would_reset_the_twins(generator):
    net, x, labels = make(generator)
    step_of(net, compile=False).accumulate_grads(x, labels)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(RuntimeError, match=r"update_bn.*strip_adversarial_bn"):
        update_bn([x], net)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    stripped = strip_adversarial_bn(copy.deepcopy(net))
    update_bn([x], stripped)
    assert not torch.equal(stripped.bn1.running_mean, net.bn1.running_mean)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_frames_become_what_the_model_computes_in(generator, dtype):
    net, *_ = make(generator)
    net.to(dtype)
    net.mean, net.std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    frames = torch.randint(0, 256, (6, 4, 9, 9, 3), dtype=torch.uint8, generator=generator)
    pixels = frames.double().movedim(-1, 2) / 255
    expected = (pixels - net.mean.double().view(3, 1, 1)) / net.std.double().view(3, 1, 1)
    actual = to_model_input(net, frames)
    assert actual.dtype == dtype
    precision = max(torch.finfo(dtype).eps, 1e-6)
    torch.testing.assert_close(actual.double(), expected, rtol=precision, atol=2e-6)
    out = step_of(net, compile=False)(frames, torch.zeros(6, dtype=torch.int64))
    assert out["loss"].isfinite()


def test_arrays_are_no_tensors(generator):
    net, x, labels = make(generator)
    with pytest.raises(ValueError, match=r"expected clips as a torch.Tensor, got ndarray"):
        step_of(net, compile=False)(x.numpy(), labels)


@pytest.mark.parametrize("shape", [(3,), (3, 1, 1), (1, 3, 1, 1), "tuple", "array"])
def test_the_normalisation_comes_in_many_forms(generator, expected, shape):
    net, x, labels = make(generator)
    mean, std = net.mean, net.std
    del net.mean, net.std
    if shape == "tuple":
        net.mean, net.std = tuple(mean.tolist()), tuple(std.tolist())
    elif shape == "array":
        net.mean, net.std = mean.numpy(), std.numpy()
    else:
        net.mean, net.std = mean.view(shape), std.view(shape)
    step_of(net, compile=False)(x, labels)["loss"].backward()
    expect_equal(grads(net), expected)


@pytest.mark.parametrize(
    "mean,std,message",
    [
        ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375], r"mean must be that of pixels in \[0,1\]"),
        ([0.4, 0.5, 0.6], [58.395, 57.12, 57.375], r"std must be that of pixels in \[0,1\]"),
        ([0.4, 0.5, 0.6], [0.2, 0.0, 0.2], r"std must be that of pixels"),
        ([0.4, float("nan"), 0.6], [0.2, 0.2, 0.2], r"mean must be that of pixels"),
        ([0.4], [0.2], r"mean must have a value for each of 3 channels, got"),
        (0.5, 0.5, r"mean must have a value for each of 3 channels, got"),
    ],
)
@pytest.mark.parametrize("kind", [lambda values: values, torch.tensor])
def test_the_normalisation_is_that_of_pixels_up_to_one(generator, kind, mean, std, message):
    net, x, labels = make(generator)
    del net.mean, net.std
    net.mean, net.std = kind(mean), kind(std)
    with pytest.raises(ValueError, match=message):
        step_of(net, compile=False).accumulate_grads(x, labels)
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda y: y.tolist(), "labels as a torch.Tensor, got list"),
        (lambda y: y.to("meta"), "labels on the clips' device cpu, got meta"),
        (lambda y: y.int(), "int64 labels"),
    ],
)
def test_labels_are_integers_beside_the_clips(generator, change, message):
    net, x, labels = make(generator)
    with pytest.raises(ValueError, match=message):
        step_of(net, compile=False)(x, change(labels))


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("normalised", [False, True])
def test_every_clip_has_limits_of_its_own(generator, steps, normalised):
    net, x, labels = make(generator)
    if not normalised:
        x, net.mean, net.std = x * 0.1 + 0.5, torch.zeros(3), torch.ones(3)
    epsilon = torch.linspace(0, 64 / 255, 6, dtype=torch.float64)
    step_size = epsilon.flip(0) / 2
    options = ATTACK | dict(steps=steps)
    rows = torch.tensor([1, 3, 4])
    expected = [
        attack(
            copy.deepcopy(net),
            x,
            labels,
            [row],
            attack_bn="frozen",
            **options | dict(epsilon=float(epsilon[row]), step_size=float(step_size[row])),
        )
        for row in rows.tolist()
    ]
    options |= dict(epsilon=epsilon, step_size=step_size)
    augment = TemporalAugment(**options, label="true")
    with torch.no_grad(), augment.recording(net) as recording:
        stages = (net.features(x),)
        net.head(*stages)
    if not normalised:
        net.mean = net.std = None
    moved, _ = augment.attack(net, x, labels, CleanForward(recording, stages), Rows(rows))
    for actual, (wanted, certain) in zip(moved, expected, strict=True):
        torch.testing.assert_close(actual[certain[0]], wanted[0][certain[0]], rtol=0, atol=1e-7)
    with pytest.raises(ValueError, match="epsilon must be a number, or one for each of the 2 clips"):
        augment(net, x[:2], labels[:2])


@pytest.mark.parametrize("kind", [NoiseAugment, AdvPropAugment])
def test_the_other_augmentations_have_them_too(generator, kind):
    net, x, labels = make(generator)
    add_adversarial_bn(net)
    epsilon = torch.linspace(0, 64 / 255, 6, dtype=torch.float64)
    seeds = [torch.Generator().manual_seed(0) for _ in range(6)]
    moved = kind(epsilon=epsilon, step_size=epsilon)(net, x, labels, torch.Generator().manual_seed(0))
    for row, seed in enumerate(seeds):
        value = float(epsilon[row])
        alone = kind(epsilon=value, step_size=value)(net, x, labels, seed)
        torch.testing.assert_close(moved[row], alone[row], rtol=0, atol=1e-7)
