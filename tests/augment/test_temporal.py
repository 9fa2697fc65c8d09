"""TemporalAugment against the literal double-backward reference, and what it promises besides."""

import copy
import itertools

import pytest
import torch
from reference.temporal_augment import Net, attack, clips_in_range, frozen_copy, input_gradient

import taf_fast
from taf_fast import TemporalAugment, adapt, models

EPSILON, STEP = 64 / 255, 32 / 255


def make(generator, segments=8, batch=3, size=9, **options):
    torch.manual_seed(generator.initial_seed())
    net = Net(segments=segments, **options).double()
    x = clips_in_range(net, batch, segments, size, generator)
    return net, x, torch.randint(0, 5, (batch,), generator=generator)


def assert_same_perturbation(actual, expected, certain):
    # A pixel whose gradient is rounding noise may go either way.
    assert certain.double().mean() > 0.99
    torch.testing.assert_close(actual[certain], expected[certain], rtol=0, atol=1e-12)


@pytest.mark.parametrize("attack_bn", ["frozen", "batch"])
@pytest.mark.parametrize("denominator", ["max", "range"])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("num_frames", [1, 2, 4, 8])
def test_equals_double_backward(generator, num_frames, steps, denominator, attack_bn):
    net, x, labels = make(generator)
    augment = TemporalAugment(
        EPSILON,
        STEP,
        steps=steps,
        num_frames=num_frames,
        denominator=denominator,
        attack_bn=attack_bn,
        label="true",
    )
    expected, certain = attack(
        net, x, labels, [0, 1, 2], EPSILON, STEP, steps, num_frames, denominator, attack_bn
    )
    assert_same_perturbation(augment(net, x, labels), expected, certain)


@pytest.mark.parametrize(
    "options",
    [
        {"relu": True},
        {"gradient": "logit"},
        {"perturb": "selected", "num_frames": 2},
        {"clamp": False},
        {"steps": 4, "epsilon": 6 / 255, "step_size": 2 / 255},
        {"perturb": "selected", "num_frames": 1, "attack_bn": "batch", "steps": 2},
    ],
    ids=lambda options: "-".join(options),
)
def test_options_equal_reference(generator, options):
    net, x, labels = make(generator, segments=4)
    augment = TemporalAugment(**{"label": "true"} | options)
    reference = dict(
        epsilon=EPSILON, step_size=STEP, steps=1, num_frames=4, denominator="max", attack_bn="frozen"
    )
    expected, certain = attack(net, x, labels, [0, 1, 2], **reference | options)
    assert_same_perturbation(augment(net, x, labels), expected, certain)


@pytest.mark.parametrize("attack_bn", ["frozen", "batch"])
def test_any_head(generator, attack_bn):
    """A head that neither pools nor is linear, and has its own batch norm."""
    net, x, labels = make(generator, deep_head=True)
    augment = TemporalAugment(label="true", attack_bn=attack_bn, steps=2, num_frames=3)
    expected, certain = attack(net, x, labels, [0, 1, 2], EPSILON, STEP, 2, 3, "max", attack_bn)
    assert_same_perturbation(augment(net, x, labels), expected, certain)


@pytest.mark.slow
@pytest.mark.parametrize("attack_bn", ["frozen", "batch"])
@pytest.mark.parametrize("denominator", ["max", "range"])
def test_tsm_resnet(generator, denominator, attack_bn):
    """The family's head has a closed form; the reference differentiates twice through the whole network."""
    torch.manual_seed(generator.initial_seed())
    net = models.build("tsm_resnet18", 5, 4, dropout=0.0).double()
    net.fc.weight.data *= 100
    x = clips_in_range(net, 2, 4, 48, generator)
    labels = torch.tensor([1, 3])
    expected, certain = attack(net, x, labels, [0, 1], EPSILON, STEP, 1, 3, denominator, attack_bn)
    augment = TemporalAugment(num_frames=3, denominator=denominator, attack_bn=attack_bn, label="true")
    actual = augment(net, x, labels)
    assert certain.double().mean() > 0.99
    # At a depth of 10 layers some gradients are rounding noise, so nearly all signs must agree, not all.
    assert ((actual - expected).abs() < 1e-12)[certain].double().mean() > 0.9999


@pytest.mark.slow
def test_closed_form_head_equals_double_backward(generator):
    """The same model with and without the declaration of its head, dropout and all options in force."""
    torch.manual_seed(generator.initial_seed())
    net = models.build("tsm_resnet18", 5, 4, dropout=0.5).double()
    x, labels = clips_in_range(net, 3, 4, 40, generator), torch.tensor([1, 3, 0])
    undeclared = adapt(net, "backbone", 4)
    augment = TemporalAugment(steps=2, num_frames=2, perturb="selected", label="true")
    moved = []
    for model in (net, undeclared):
        torch.manual_seed(7)  # dropout
        moved.append(augment(model, x, labels))
    assert ((moved[0] - moved[1]).abs() < 1e-12).double().mean() > 0.999


@pytest.mark.parametrize("segments, size", [(1, 9), (4, 5), (3, 12)])
def test_edge_shapes(generator, segments, size):
    net, x, labels = make(generator, segments=segments, size=size)
    expected, certain = attack(net, x, labels, [0, 1, 2], EPSILON, STEP, 1, segments, "max", "frozen")
    assert_same_perturbation(TemporalAugment(label="true")(net, x, labels), expected, certain)


def test_memory_formats(generator):
    net, x, labels = make(generator, segments=4)
    augment = TemporalAugment(label="true")
    plain = augment(net, x, labels)
    channels_last = x.movedim(2, -1).contiguous().movedim(-1, 2)
    sliced = torch.cat([x, x], -1)[..., : x.shape[-1]]
    assert not channels_last.is_contiguous() and not sliced.is_contiguous()
    for other in (channels_last, sliced):
        torch.testing.assert_close(augment(net, other, labels), plain, rtol=0, atol=1e-12)


def test_bfloat16_model_moves_pixels_the_same_way(generator):
    net, x, labels = make(generator, segments=4, batch=4, size=16)
    expected = TemporalAugment(label="true")(net, x, labels)
    low = copy.deepcopy(net).bfloat16()
    actual = TemporalAugment(label="true")(low, x.bfloat16(), labels)
    assert actual.dtype == torch.bfloat16
    same = ((actual.double() - x).sign() == (expected - x).sign()).double().mean()
    assert same > 0.8


def test_frozen_statistics_make_clips_independent(generator):
    net, x, labels = make(generator, batch=4)
    whole = TemporalAugment(label="true")(net, x, labels)
    other = x.clone()
    # Same statistics, other order: each clip must get what it got.
    order = [2, 0, 3, 1]
    shuffled = TemporalAugment(label="true")(net, other[order], labels[order])
    torch.testing.assert_close(shuffled, whole[order], rtol=0, atol=1e-12)


def test_eval_mode_uses_running_statistics(generator):
    net, x, labels = make(generator)
    net(x)
    net.eval()
    augment = TemporalAugment(label="true")
    single = torch.cat([augment(net, x[i : i + 1], labels[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(augment(net, x, labels), single, rtol=0, atol=1e-12)
    exact = TemporalAugment(label="true", attack_bn="batch")(net, x, labels)
    torch.testing.assert_close(exact, single, rtol=0, atol=1e-12)


def test_raises_the_least_attended_frames(generator):
    """The purpose of the attack: a small step raises L_C for every clip."""
    net, x, labels = make(generator, batch=6)
    frozen = frozen_copy(net, x)
    rows = list(range(6))
    moved = TemporalAugment(1e-7, 1e-7, label="true", clamp=False)(net, x, labels)
    before, after = (input_gradient(frozen, clips, labels, rows, 8, "max")[2] for clips in (x, moved))
    alive = (moved != x).flatten(1).any(1)
    assert alive.any() and (after > before)[alive].all()


def test_stays_in_the_ball_and_in_the_pixel_range(generator):
    net, x, labels = make(generator, segments=4)
    mean, std = net.mean.view(3, 1, 1), net.std.view(3, 1, 1)
    moved = TemporalAugment(10 / 255, 7 / 255, steps=3)(net, x, labels, generator)
    pixels, clean = moved * std + mean, x * std + mean
    assert ((pixels - clean).abs() <= 10 / 255 + 1e-12).all()
    assert pixels.min() >= -1e-12 and pixels.max() <= 1 + 1e-12
    assert ((pixels - clean).abs() > 9 / 255).any()


@pytest.mark.parametrize("attack_bn", ["frozen", "batch"])
def test_leaves_the_model_and_the_input_alone(generator, attack_bn):
    net, x, labels = make(generator)
    before, clips = copy.deepcopy(net.state_dict()), x.clone()
    moved = TemporalAugment(attack_bn=attack_bn, steps=2)(net, x, labels, generator)
    assert not moved.requires_grad and torch.equal(x, clips)
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training and net.bn1.track_running_stats


def test_attack_labels(generator):
    labels = torch.randint(0, 5, (4000,), generator=generator)
    logits = torch.nn.functional.one_hot(
        torch.where(torch.arange(4000) % 2 == 0, labels, (labels + 1) % 5), 5
    )
    correct = torch.arange(4000) % 2 == 0
    targets = TemporalAugment().attack_labels(logits.float(), labels, generator)
    assert (targets[~correct] == labels[~correct]).all() and (targets[correct] != labels[correct]).all()
    offsets = torch.bincount((targets - labels)[correct] % 5, minlength=5)
    assert offsets[0] == 0 and offsets[1:].min() > 400
    assert torch.equal(TemporalAugment(label="true").attack_labels(logits, labels, None), labels)
    assert (TemporalAugment(label="random").attack_labels(logits, labels, generator) != labels).all()


def test_generator_decides(generator):
    net, x, labels = make(generator, batch=4)
    augment = TemporalAugment(label="random")
    first, second = (augment(net, x, labels, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)


def test_uint8_clips_are_normalised_pixels(generator):
    net, _, labels = make(generator, segments=4)
    net = net.float()
    frames = torch.randint(0, 256, (3, 4, 9, 9, 3), dtype=torch.uint8, generator=generator)
    floats = (frames.float().movedim(-1, 2) / 255 - net.mean.view(3, 1, 1)) / net.std.view(3, 1, 1)
    augment = TemporalAugment(label="true")
    actual, expected = augment(net, frames, labels), augment(net, floats, labels)
    assert actual.shape == (3, 4, 3, 9, 9)
    assert ((actual - expected).abs() < 1e-5).float().mean() > 0.999


def test_model_without_mean_and_std_works_in_pixels(generator):
    net, _, labels = make(generator, segments=4)
    del net.mean, net.std
    x = torch.rand(3, 4, 3, 9, 9, generator=generator, dtype=torch.float64)
    moved = TemporalAugment(0.1, 0.1, label="true")(net, x, labels)
    assert moved.min() >= 0 and moved.max() <= 1
    inside = (x > 0.1) & (x < 0.9)
    changed = (moved - x)[inside].abs()
    assert (((changed - 0.1).abs() < 1e-12) | (changed == 0)).all() and (changed > 0).double().mean() > 0.9


@pytest.mark.parametrize(
    "options, message",
    [
        ({"epsilon": -0.1}, "epsilon must be between 0 and 1, .* got -0.1"),
        ({"step_size": float("nan")}, "step_size"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"num_frames": 0}, "num_frames must be at least 1"),
        ({"denominator": "mean"}, "denominator must be one of max, range, got 'mean'"),
        ({"attack_bn": "eval"}, "attack_bn"),
        ({"gradient": "x"}, "gradient"),
        ({"label": "x"}, "label"),
        ({"perturb": "x"}, "perturb"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        TemporalAugment(**options)


def test_impossible_batches(generator):
    net, x, labels = make(generator, segments=4)
    augment = TemporalAugment(num_frames=5)
    with pytest.raises(ValueError, match="at most the clip's 4 frames, got 5"):
        augment(net, x, labels)
    augment = TemporalAugment()
    with pytest.raises(ValueError, match=r"int64 labels of shape \[3\]"):
        augment(net, x, labels[:2])
    with pytest.raises(ValueError, match="int64 labels"):
        augment(net, x, labels.int())
    with pytest.raises(ValueError, match=r"floats \[B,T,3,H,W\] or uint8"):
        augment(net, x[0], labels)
    with pytest.raises(ValueError, match=r"\[B,T,H,W,3\]"):
        augment(net, torch.zeros(3, 4, 3, 9, 9, dtype=torch.uint8), labels)
    for value in (float("nan"), float("inf")):
        bad = x.clone()
        bad[1, 2, 0, 3, 3] = value
        with pytest.raises(ValueError, match=r"clips \[1\] of the batch contain NaN or infinity"):
            augment(net, bad, labels)
    with pytest.raises(ValueError, match=r"no \.features and no \.head: .* wrap it with taf_fast\.adapt"):
        augment(torch.nn.Flatten(), x, labels)


def test_one_class_has_no_other():
    with pytest.raises(ValueError, match="at least 2 classes"):
        TemporalAugment().attack_labels(torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64), None)


def test_public_names():
    names = ("TemporalAugment", "TAFStep", "adapt", "add_adversarial_bn", "strip_adversarial_bn")
    assert all(
        hasattr(taf_fast, name) for name in itertools.chain(names, ["adversarial_path", "ops", "models"])
    )
