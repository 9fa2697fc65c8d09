"""The augmentations that TA is compared with, against literal references, alone and in a training step."""

import copy

import pytest
import torch
import torch.nn.functional as F
from reference.comparisons import advprop_attack, cross_entropy_attack, mix, noisy
from reference.temporal_augment import Net, clips_in_range
from scipy import stats

import taf_fast
from taf_fast import AdvPropAugment, CrossEntropyAugment, NoiseAugment, PlainStep, TAFStep, models
from taf_fast.augment import MIXINGS, Mixing, Rows

EPSILON, STEP = 64 / 255, 32 / 255


def make(generator, segments=4, batch=6, size=9, **options):
    torch.manual_seed(generator.initial_seed())
    net = Net(segments=segments, **options).double()
    net.fc.weight.data *= 4
    x = clips_in_range(net, batch, segments, size, generator)
    return net, x, torch.randint(0, 5, (batch,), generator=generator)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def assert_same_perturbation(actual, expected, certain):
    assert certain.double().mean() > 0.99
    torch.testing.assert_close(actual[certain], expected[certain], rtol=0, atol=1e-12)


@pytest.mark.parametrize("deep_head", [False, True])
@pytest.mark.parametrize("attack_bn", ["frozen", "batch"])
@pytest.mark.parametrize("steps, epsilon, step_size", [(1, EPSILON, STEP), (3, 6 / 255, 2 / 255)])
def test_cross_entropy_is_pgd(generator, steps, epsilon, step_size, attack_bn, deep_head):
    net, x, labels = make(generator, deep_head=deep_head)
    before = copy.deepcopy(net.state_dict())
    expected, certain = cross_entropy_attack(
        net, x, labels, list(range(6)), epsilon, step_size, steps, attack_bn
    )
    actual = CrossEntropyAugment(epsilon, step_size, steps, attack_bn)(net, x, labels)
    assert_same_perturbation(actual, expected, certain)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("family", ["tsm", "gst", "tam", "tpn"])
def test_cross_entropy_of_the_families(generator, family):
    """Their trunks are replayed; TPN's head takes two stages."""
    torch.manual_seed(generator.initial_seed())
    net = models.build(f"{family}_resnet18", 5, 8 if family == "tpn" else 4, dropout=0.0).double()
    x = clips_in_range(net, 2, net.num_segments, 64, generator)
    labels = torch.tensor([1, 3])

    class Literal(torch.nn.Module):
        mean, std = net.mean, net.std

        def __init__(self, whole):
            super().__init__()
            self.whole = whole

        def features(self, clips):
            return (
                self.whole.stages(clips) if hasattr(self.whole, "stages") else (self.whole.features(clips),)
            )

        def head(self, parts):
            return self.whole.head(*parts)

    expected, certain = cross_entropy_attack(Literal(net), x, labels, [0, 1], EPSILON, STEP, 1, "frozen")
    actual = CrossEntropyAugment()(net, x, labels)
    assert certain.double().mean() > 0.99
    assert ((actual - expected).abs() < 1e-12)[certain].double().mean() > 0.9999


def test_labels_of_the_cross_entropy_attack(generator):
    net, x, labels = make(generator)
    logits = copy.deepcopy(net)(x)
    for label, expected in (("true", labels), ("outcome", None)):
        augment = CrossEntropyAugment(label=label)
        targets = augment.attack_labels(logits, labels, seeded(3))
        if expected is None:
            right = logits.argmax(1) == labels
            assert torch.equal(targets != labels, right)
        else:
            assert torch.equal(targets, expected)


def test_noise(generator):
    net, x, labels = make(generator)
    normal = torch.randn(x.shape, generator=seeded(5)).double()
    moved = NoiseAugment(40 / 255, 32 / 255)(net, x, labels, seeded(5))
    torch.testing.assert_close(moved, noisy(net, x, normal, 40 / 255, 32 / 255), rtol=0, atol=1e-12)
    # Pixels that neither the ball nor the range limits have the standard deviation of a step.
    pixels = (moved - x) * net.std.view(3, 1, 1)
    assert pixels.abs().max() <= 40 / 255 + 1e-12
    free = NoiseAugment(1.0, 32 / 255, clamp=False)(net, x, labels, seeded(5)) - x
    z = (free * net.std.view(3, 1, 1) / (32 / 255)).flatten()
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-8
    rows = torch.tensor([4, 1])
    some, failed = NoiseAugment().attack(net, x, labels, rows=Rows(rows), generator=seeded(5))
    assert some.shape == x[rows].shape and not failed.any()


@pytest.mark.parametrize("steps", [1, 4])
def test_advprop(generator, steps):
    net, x, labels = make(generator)
    taf_fast.add_adversarial_bn(net)
    for norm in (net.bn1, net.bn2):  # twins that differ from the clean layers
        torch.nn.init.normal_(norm.adversarial.weight, 1, 0.3)
        norm.adversarial.running_mean.normal_(0, 0.1)
    auxiliary = copy.deepcopy(net)
    auxiliary.bn1, auxiliary.bn2 = auxiliary.bn1.adversarial, auxiliary.bn2.adversarial
    before = copy.deepcopy(net.state_dict())

    augment = AdvPropAugment(6 / 255, 2 / 255, steps)
    uniform = seeded(11)
    noise = torch.rand(x.shape, generator=uniform).mul_(2).sub_(1).double()
    noise *= (torch.rand(6, generator=uniform) < 0.8).view(-1, 1, 1, 1, 1)
    expected = advprop_attack(auxiliary, x, labels, noise, 6 / 255, 2 / 255, steps)
    actual, failed = augment.attack(net, x, labels, None, generator=seeded(11))
    assert not failed.any() and net.training and net.bn1.adversarial.training
    # float32 draws, so that start and projection differ in their last bits.
    assert ((actual - expected).abs() < 1e-6).double().mean() > 0.999
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    # Any class, the true one too.
    labels = torch.zeros(4000, dtype=torch.int64)
    drawn = augment.attack_labels(torch.zeros(4000, 5), labels, generator)
    assert stats.chisquare(drawn.bincount(minlength=5).numpy()).pvalue > 1e-8


def test_advprop_needs_auxiliary_batch_norms(generator):
    net, x, labels = make(generator)
    with pytest.raises(ValueError, match="add_adversarial_bn"):
        AdvPropAugment()(net, x, labels)


@pytest.mark.parametrize("kind", [CrossEntropyAugment, NoiseAugment, AdvPropAugment])
def test_impossible_options(kind):
    for name in ("epsilon", "step_size"):
        with pytest.raises(ValueError, match=f"{name} must be between 0 and 1, .* got -1"):
            kind(**{name: -1})
    if kind is not NoiseAugment:
        with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
            kind(steps=0)


@pytest.mark.parametrize("kind", [CrossEntropyAugment, NoiseAugment, AdvPropAugment])
@pytest.mark.parametrize("form", ["forward", "accumulate_grads"])
def test_step(generator, kind, form):
    """The adversarial loss is that of the augmented clips through the auxiliary batch norms; of the wrongly
    classified clips alone."""
    net, x, labels = make(generator)
    predicted = copy.deepcopy(net)(x).argmax(1)
    labels = torch.where(torch.arange(6) % 2 == 0, predicted, (predicted + 1) % 5)
    rows = [1, 3, 5]
    taf_fast.add_adversarial_bn(net)
    auxiliary, clean = copy.deepcopy(net), copy.deepcopy(net)
    augment = kind()
    reference = seeded(2)
    targets = augment.attack_labels(torch.zeros(6, 5), labels, reference)
    if kind is CrossEntropyAugment:
        plain = taf_fast.strip_adversarial_bn(copy.deepcopy(net))
        moved, _ = cross_entropy_attack(plain, x, targets, rows, EPSILON, STEP, 1, "frozen")
    else:
        moved, _ = augment.attack(copy.deepcopy(net), x, targets, None, Rows(torch.tensor(rows)), reference)
    clean_loss = F.cross_entropy(clean(x), labels)
    with taf_fast.adversarial_path(auxiliary):
        adv_loss = F.cross_entropy(auxiliary(moved), labels[rows])

    out = getattr(TAFStep(net, augment, 0.6, compile=False), form)(x, labels, seeded(2))
    assert out["attacked"] == 3
    torch.testing.assert_close(out["adv_loss"], adv_loss.detach(), rtol=1e-9, atol=0)
    torch.testing.assert_close(
        out["loss"].detach(), (0.6 * clean_loss + 0.4 * adv_loss).detach(), rtol=1e-9, atol=0
    )


def given_by(name, seed, batch, shape):
    """The random numbers of a mixing, drawn as it draws them."""
    draws = seeded(seed)
    partner = torch.randperm(batch, generator=draws)
    given = {"lam": torch.rand(1, generator=draws).item()}
    if name != "mixup":
        given["centre"] = [int(u * n) for u, n in zip(torch.rand(3, generator=draws), shape, strict=True)]
        given["mu"] = sorted(torch.rand(3, generator=draws).tolist())[1]
        given["boxed"] = torch.rand(1, generator=draws).item() < 0.5
    return partner, given


@pytest.mark.parametrize("shape", [(8, 10, 14), (1, 7, 7), (5, 9, 6)])
@pytest.mark.parametrize("name", MIXINGS)
def test_mixing(seed, name, shape):
    """Both halves of mu and of chance occur in 40 batches, except with probability 10^-11."""
    seen = set()
    for number in range(40):
        generator = seeded(seed + number)
        x = torch.rand(4, shape[0], 3, *shape[1:], generator=generator)
        partner, given = given_by(name, number + seed, 4, shape)
        mixed, own, chosen = MIXINGS[name](x, seeded(seed + number))
        assert torch.equal(chosen, partner) and own.dtype == torch.float32
        expected, weight = mix(name, x, x[partner], given)
        torch.testing.assert_close(mixed.double(), torch.from_numpy(expected), rtol=0, atol=1e-6)
        assert own.item() == pytest.approx(weight, abs=1e-6)
        seen.add((given.get("mu", 0) >= 0.5, given.get("boxed")))
    assert len(seen) == (1 if name == "mixup" else 4)


@pytest.mark.parametrize("name", MIXINGS)
def test_weight_is_what_a_clip_has_of_itself(seed, name):
    x = torch.arange(5.0).view(5, 1, 1, 1, 1).expand(5, 6, 3, 8, 8)
    for number in range(20):
        mixed, own, partner = MIXINGS[name](x, seeded(seed + number))
        expected = own * torch.arange(5.0) + (1 - own) * partner
        torch.testing.assert_close(mixed.mean((1, 2, 3, 4)), expected, rtol=0, atol=1e-5)


def test_distribution_of_the_weights(seed):
    x = torch.zeros(2, 1, 3, 1, 1)
    generator = seeded(seed)
    for name, beta in (("mixup", 1), ("framemixup", 2)):  # the box of a single frame is empty
        weights = [MIXINGS[name](x, generator)[1].item() for _ in range(1500)]
        assert stats.kstest(weights, stats.beta(beta, beta).cdf).pvalue > 1e-8


def test_memory_formats_and_bfloat16(generator):
    x = torch.rand(3, 4, 3, 8, 8, generator=generator)
    last = x.movedim(2, -1).contiguous().movedim(-1, 2)
    for name, mixing in MIXINGS.items():
        expected = mixing(x, seeded(1))
        assert torch.equal(mixing(last, seeded(1))[0], expected[0]), name
        low, own, _ = mixing(x.bfloat16(), seeded(1))
        assert low.dtype == torch.bfloat16 and own == expected[1]
        torch.testing.assert_close(low.float(), expected[0], rtol=0, atol=0.02)


@pytest.mark.parametrize("form", ["forward", "accumulate_grads"])
@pytest.mark.parametrize("name", MIXINGS)
def test_step_of_mixed_clips(generator, name, form):
    net, x, labels = make(generator)
    literal = copy.deepcopy(net)
    mixed, own, partner = MIXINGS[name](x, seeded(4))
    logits = literal(mixed)
    loss = own.double() * F.cross_entropy(logits, labels)
    loss = loss + (1 - own.double()) * F.cross_entropy(logits, labels[partner])
    loss.backward()

    out = getattr(PlainStep(net, compile=False, mix=MIXINGS[name]), form)(x, labels, seeded(4))
    if form == "forward":
        out["loss"].backward()
    assert "clean_loss" not in out
    torch.testing.assert_close(out["loss"].detach(), loss.detach(), rtol=1e-7, atol=0)
    for key, parameter in literal.named_parameters():
        torch.testing.assert_close(net.get_parameter(key).grad, parameter.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("augment", [CrossEntropyAugment(), NoiseAugment(), MIXINGS["cubemixup"]])
def test_compiled_step(generator, augment, uncompiled_graphs):
    net, x, labels = make(generator)
    losses = []
    for compile in (False, True):
        model = copy.deepcopy(net)
        if isinstance(augment, Mixing):
            step = PlainStep(model, compile=compile, mix=augment)
        else:
            taf_fast.add_adversarial_bn(model)
            step = TAFStep(model, augment, composition="all", compile=compile)
        losses.append(step.accumulate_grads(x, labels, seeded(1))["loss"])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-9, atol=0)
