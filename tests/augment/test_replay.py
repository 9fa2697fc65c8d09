"""The replay against the gradient of a second forward, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from reference.temporal_augment import attack, clips_in_range
from torch import nn

from taf_fast import TemporalAugment, models
from taf_fast.augment import ALL_ROWS, Rows
from taf_fast.augment.batch_statistics import FreezeStatistics
from taf_fast.augment.model_state import running_statistics_untouched
from taf_fast.augment.replay import NotReplayable, Recording, Replay

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def compare(stages, model, x, rows, generator, rtol=1e-9):
    """Gradients by replay and by a forward of the chosen clips with the same statistics."""
    with Recording() as recording:
        outputs = stages(x)
    chosen = slice(None) if rows is None else rows
    gradients = tuple(
        torch.randn(out[chosen].shape, generator=generator, dtype=torch.float64).to(out) for out in outputs
    )
    with running_statistics_untouched(model):
        replay = Replay(stages, recording, x, Rows(rows))
        actual = replay.gradient(gradients)
        again = x[chosen].clone().requires_grad_()
        with FreezeStatistics(recording.calls):
            outputs = stages(again)
            (expected,) = torch.autograd.grad(outputs, again, gradients)
        # Further attack steps: batch norms are parts of their convolutions.
        with recording.constant as constant:
            folded = stages(again)
            (further,) = torch.autograd.grad(folded, again, gradients)
    assert constant.used == replay.norms
    torch.testing.assert_close(folded, outputs, rtol=rtol, atol=rtol)
    torch.testing.assert_close(further, expected, rtol=rtol, atol=rtol * expected.abs().max().item())
    assert replay.norms == len(recording.calls)
    assert expected.abs().max() > 0 and actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol * expected.abs().max().item())


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan():
    """Placeholders have no values: if one were used, NaN would show it."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def stages_of(model):
    return model.stages if hasattr(model, "stages") else lambda clips: (model.features(clips),)


def model_and_clips(family, generator):
    torch.manual_seed(generator.initial_seed())
    model = models.build(f"{family}_resnet18", 5, 3, dropout=0.0).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    x = torch.randn(4, 3, 3, 36, 44, generator=generator, dtype=torch.float64)
    return model, x


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", [None, [2], [3, 0, 2], [0, 1, 2, 3]], ids=str)
@pytest.mark.parametrize("family", ["tsm", "gst", "gst_large", "tam", "tpn"])
def test_equals_a_second_forward(generator, family, rows, device):
    model, x = model_and_clips(family, generator)
    model, x = model.to(device), x.to(device)
    rows = None if rows is None else torch.tensor(rows, device=device)
    compare(stages_of(model), model, x, rows, generator)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", ["tsm", "gst", "gst_large", "tam", "tpn"])
def test_through_the_batch_statistics(generator, family, device):
    """Against autograd through the one forward that was recorded."""
    model, x = model_and_clips(family, generator)
    model, x = model.to(device), x.to(device).requires_grad_()
    with Recording(keep_inputs=True) as recording:
        outputs = stages_of(model)(x)
    gradients = tuple(torch.randn(out.shape, generator=generator).to(out) for out in outputs)
    (expected,) = torch.autograd.grad(outputs, x, gradients, retain_graph=True)
    with running_statistics_untouched(model):
        actual = Replay(stages_of(model), recording, x, ALL_ROWS).gradient(gradients)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())
    recording.free()
    assert not recording.tape and all(statistics.input is None for statistics in recording.calls)


def test_further_attack_steps_run_no_batch_norm_after_a_convolution(generator):
    model, x = model_and_clips("tsm", generator)
    with Recording() as recording:
        model.features(x)
    with running_statistics_untouched(model):
        Replay(stages_of(model), recording, x, ALL_ROWS)
        for context, norms in ((FreezeStatistics(recording.calls), 20), (recording.constant, 0)):
            with torch.profiler.profile() as profile, context:
                model.features(x)
            assert [event.key for event in profile.events()].count("aten::native_batch_norm") == norms


@pytest.mark.parametrize("name", ["tsm_resnet50", "gst_resnet50"])
def test_bottlenecks_in_channels_last(generator, name):
    torch.manual_seed(generator.initial_seed())
    model = models.build(name, 5, 2, dropout=0.0).double()
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    x = torch.randn(3, 2, 32, 32, 3, generator=generator, dtype=torch.float64).movedim(-1, 2)
    compare(stages_of(model), model, x, torch.tensor([2, 0]), generator)


def test_statistics_in_eval_mode_are_the_running_ones(generator):
    torch.manual_seed(generator.initial_seed())
    model = models.build("tsm_resnet18", 5, 2).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1), module.running_var.uniform_(0.5, 2)
    model.eval()
    x = torch.randn(3, 2, 3, 32, 32, generator=generator, dtype=torch.float64)
    compare(stages_of(model), model, x, torch.tensor([1]), generator)


class Shared(nn.Module):
    """A convolution whose output is also read outside the batch norm, ``before`` or after it."""

    def __init__(self, before):
        super().__init__()
        self.first, self.norm, self.before = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), before

    def forward(self, clips):
        x = self.first(clips.flatten(0, 1))
        aside = F.relu(x) if self.before else None
        x = self.norm(x) + (aside if self.before else F.relu(x))
        return (torch.unflatten(x, 0, clips.shape[:2]),)


def test_a_convolution_read_by_more_than_its_batch_norm(generator):
    x = torch.randn(3, 2, 3, 11, 14, generator=generator, dtype=torch.float64)
    torch.manual_seed(generator.initial_seed())
    before, after = Shared(True).double(), Shared(False).double()
    compare(before, before, x, torch.tensor([2, 1]), generator)
    with Recording() as recording, running_statistics_untouched(after):
        after(x)
        with pytest.raises(NotReplayable, match="before it was changed in place"):
            Replay(after, recording, x, ALL_ROWS)


class Stage(nn.Module):
    """One convolution, a given module, another convolution."""

    def __init__(self, something, **options):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, **options)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 4, 3, padding=1, groups=2)
        self.something = something

    def forward(self, clips):
        frames = self.last(self.something(self.norm(self.first(clips.flatten(0, 1)))))
        return (frames.view(*clips.shape[:2], *frames.shape[1:]),)


@pytest.mark.parametrize(
    "something, options",
    [
        (F.relu, {"stride": (1, 2), "padding": (2, 0), "dilation": (1, 2)}),
        (torch.relu, {"padding": 1, "bias": False}),
        (lambda x: x.relu(), {}),
        (lambda x: F.relu(x, inplace=True), {}),
        (lambda x: F.relu(x + x), {}),
        (nn.MaxPool2d(3, 2, padding=1), {}),
        (nn.MaxPool2d(2, ceil_mode=True), {}),
        (lambda x: F.max_pool2d(x, (2, 1), dilation=2), {}),
        (lambda x: torch.add(x, x), {}),
        (nn.Identity(), {}),
    ],
)
def test_layers(generator, something, options):
    torch.manual_seed(generator.initial_seed())
    stage = Stage(something, **options).double()
    x = torch.randn(3, 2, 3, 11, 14, generator=generator, dtype=torch.float64)
    compare(stage, stage, x, torch.tensor([2, 1]), generator)


def test_bfloat16_loses_no_more_than_a_second_forward(generator):
    torch.manual_seed(generator.initial_seed())
    stage = Stage(F.relu)
    x = torch.randn(3, 2, 3, 11, 14, generator=generator)
    rows, errors, exact = torch.tensor([2, 0]), [], None
    for dtype in (torch.float64, torch.bfloat16):
        stage, x = stage.to(dtype), x.to(dtype)
        with Recording() as recording:
            (out,) = stage(x)
        if exact is None:
            grad = torch.randn(out[rows].shape, generator=generator, dtype=dtype)
        with running_statistics_untouched(stage):
            replayed = Replay(stage, recording, x, Rows(rows)).gradient((grad.to(dtype),))
            again = x[rows].clone().requires_grad_()
            with FreezeStatistics(recording.calls):
                (forwarded,) = torch.autograd.grad(stage(again), again, (grad.to(dtype),))
        if exact is None:
            exact = replayed
        else:
            assert replayed.dtype == dtype
            # The median: a ReLU whose input is next to 0 may flip in either, and then outweighs all rounding.
            errors = [(g.double() - exact).abs().median() for g in (replayed, forwarded)]
    assert errors[0] <= 2 * errors[1]


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("family", ["tsm", "gst", "tam", "tpn"])
def test_autocast_loses_no_more_than_autograd(generator, family, coupled, device):
    """The same forward's gradient in bfloat16 by autograd, and by replay; float64 says how wrong they are."""
    torch.manual_seed(generator.initial_seed())
    model = models.build(f"{family}_resnet18", 5, 3, dropout=0.0)
    x, found, exact = torch.randn(4, 3, 3, 64, 64, generator=generator).to(device), [], None
    for dtype, autocast in ((torch.float64, False), (torch.float32, True)):
        model, x = model.to(device, dtype), x.detach().to(dtype).requires_grad_()
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            with Recording(keep_inputs=coupled) as recording:
                outputs = stages_of(model)(x)
            if exact is None:
                gradients = [torch.randn(out.shape, generator=generator) for out in outputs]
            gradients = [g.to(out) for g, out in zip(gradients, outputs, strict=True)]
            with running_statistics_untouched(model):
                replay = Replay(stages_of(model), recording, x, ALL_ROWS)
                replayed = replay.gradient(tuple(gradients))
            if not coupled:
                with FreezeStatistics(recording.calls):
                    outputs = stages_of(model)(x)
            (expected,) = torch.autograd.grad(outputs, x, gradients)
        assert replayed.dtype == expected.dtype == dtype
        if exact is None:
            exact = expected
            torch.testing.assert_close(replayed, exact, rtol=1e-9, atol=1e-9 * exact.abs().max().item())
        else:
            # Computed in this precision, not merely rounded to it.
            assert {out.dtype for out in (*outputs, *replay._outputs)} == {torch.bfloat16}
            found = [(g.double() - exact).norm().item() for g in (replayed, expected)]
    assert found[0] <= 1.2 * found[1]


@pytest.mark.parametrize(
    "something, name",
    [
        (torch.sigmoid, "sigmoid"),
        (lambda x: x * (x > 0), "gt"),
        (lambda x: x.clamp(min=0), "clamp"),
        (lambda x: F.leaky_relu(x), "leaky_relu"),
        (lambda x: x * x, "mul"),
        (lambda x: x / x.std(), "std"),
        (lambda x: torch.add(x, x, alpha=2), "add"),
        (lambda x: F.dropout(x, 0.5), "dropout"),
        (lambda x: F.relu(x, inplace=True) + x, "before it was changed in place"),
        (lambda x: (x.view(-1).add_(1.0), x)[1], "add_"),
        (nn.Conv2d(8, 8, 3, padding="same"), "padding same"),
        (lambda x: F.max_pool2d(x, 3, return_indices=True)[0], "max_pool2d"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_depends_on_values_is_refused(generator, something, name):
    stage = Stage(something).double()
    x = torch.randn(3, 2, 3, 11, 14, generator=generator, dtype=torch.float64)
    with running_statistics_untouched(stage):
        with Recording() as recording:
            stage(x)
        with pytest.raises(NotReplayable, match=name):
            Replay(stage, recording, x, ALL_ROWS)


class Classifier(nn.Module):
    """A model with an operation that cannot be replayed."""

    def __init__(self):
        super().__init__()
        self.stage, self.fc = Stage(nn.Softplus()), nn.Linear(4, 5)
        self.mean, self.std = torch.full((3,), 0.5).double(), torch.full((3,), 0.25).double()

    def features(self, clips):
        return self.stage(clips)[0]

    def head(self, features):
        return self.fc(features.mean((3, 4))).mean(1)


def test_models_that_cannot_be_replayed_are_forwarded_again(generator):
    torch.manual_seed(generator.initial_seed())
    model = Classifier().double()
    x, labels = clips_in_range(model, 3, 4, 9, generator), torch.tensor([1, 4, 0])
    options = dict(epsilon=8 / 255, step_size=4 / 255, steps=2, num_frames=2, denominator="range")
    expected, certain = attack(model, x, labels, [0, 1, 2], attack_bn="frozen", **options)
    actual = TemporalAugment(label="true", **options)(model, x, labels)
    assert certain.double().mean() > 0.99
    torch.testing.assert_close(actual[certain], expected[certain], rtol=0, atol=1e-12)
