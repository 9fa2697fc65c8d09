"""The replay as a graph: the bits of the replay itself, for any number of clips, and when it is traced."""

import copy
import pickle

import pytest
import torch
from reference.temporal_augment import Net
from torch import nn

from taf_fast import TAFStep, TemporalAugment, add_adversarial_bn, channels_last, models
from taf_fast.augment.model_state import running_statistics_untouched
from taf_fast.augment.replay import Recording, Replay
from taf_fast.augment.replay_graph import ReplayGraph, _GraphReplay
from taf_fast.augment.rows import ALL_ROWS, Rows
from taf_fast.models.contract import view_of
from taf_fast.precision import autocast

ATTACK = dict(epsilon=64 / 255, step_size=32 / 255, num_frames=2, label="true")


def recorded(view, x, keep_inputs=False):
    recording = Recording(keep_inputs)
    with torch.no_grad(), recording:
        out = view.forward(x)
    return recording, out.stages


def randn_like(tensors, generator):
    return tuple(torch.randn(t.shape, generator=generator).to(t) for t in tensors)


@pytest.mark.parametrize(
    "family, precision, through_statistics",
    [
        ("tsm", "float32", False),
        ("tsm", "bfloat16", False),
        ("tsm", "float32", True),
        pytest.param("gst", "bfloat16", False, marks=pytest.mark.slow),
        pytest.param("tam", "float32", False, marks=pytest.mark.slow),
        pytest.param("tpn", "bfloat16", False, marks=pytest.mark.slow),
    ],
)
def test_the_bits_of_the_replay(generator, family, precision, through_statistics):
    model = channels_last(models.build(f"{family}_resnet18", 5, 3)).train()
    view = view_of(model)
    graphs = []
    with autocast(torch.device("cpu"), precision), running_statistics_untouched(model):
        # The recording is another one in each step, the parameters move.
        for clips in (2, 5, 3, 1, 4):
            x = torch.randn(5, 3, 32, 32, 3, generator=generator).movedim(-1, 2)
            recording, stages = recorded(view, x, through_statistics)
            rows = ALL_ROWS if through_statistics else Rows(torch.randperm(5, generator=generator)[:clips])
            stages = tuple(rows.of(stage) for stage in stages)
            gradients = randn_like(stages, generator)
            fits = [graph for graph in graphs if graph.serves(len(stages[0]))]
            if not fits:
                fits = [ReplayGraph(view, recording, x, rows, stages)]
                graphs += fits
            actual = _GraphReplay(fits[0], model, recording, x, rows)
            gradient = actual.gradient(gradients)
            convolutions = recording.normalised()
            replay = Replay(view.stages, recording, x, rows)
            expected = replay.gradient(gradients)
            assert torch.equal(gradient, expected) and gradient.stride() == expected.stride()
            assert actual.norms == replay.norms
            for ours, theirs in zip(convolutions, recording.normalised(), strict=True):
                assert (ours is None) == (theirs is None)
                if ours is not None:
                    assert ours.parameters == theirs.parameters
                    assert (ours.norm_weight, ours.shift) == (theirs.norm_weight, theirs.shift)
                    assert ours.statistics is theirs.statistics
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.01)
    assert len(graphs) <= (1 if through_statistics else 3)


def test_no_operation_waits_or_has_a_constant(generator):
    """So that CUDA graphs can capture it."""
    model = models.build("tsm_resnet18", 5, 3).train()
    view = view_of(model)
    x = torch.randn(4, 3, 3, 32, 32, generator=generator)
    recording, stages = recorded(view, x)
    rows = Rows(torch.tensor([0, 2]))
    with running_statistics_untouched(model):
        graph = ReplayGraph(view, recording, x, rows, tuple(rows.of(stage) for stage in stages))
    operations = {str(node.target) for node in graph.module.graph.nodes if node.op == "call_function"}
    assert "aten.convolution_backward.default" in operations
    assert not any(
        name in each for each in operations for name in ("local_scalar", "nonzero", "lift", "to_copy")
    )
    assert not any(node.op == "get_attr" for node in graph.module.graph.nodes)


class Shifted(Net):
    """Its frames move by a number that may change."""

    by = 1

    def features(self, x):
        return super().features(torch.cat([x[:, self.by :], x[:, : self.by]], 1))


def made(generator, kind=Net):
    torch.manual_seed(generator.initial_seed())
    net = kind(segments=4)
    x = torch.rand(6, 4, 3, 9, 9, generator=generator) * 0.5 + 0.2
    return net, (x - net.mean.view(3, 1, 1)) / net.std.view(3, 1, 1)


def attacked(net, x, wrong, steps=1, attack_bn="frozen", step=None, compile=True):
    """-> the step and the gradients of a step with so many clips attacked."""
    if step is None:
        augment = TemporalAugment(**ATTACK, steps=steps, attack_bn=attack_bn)
        step = TAFStep(
            add_adversarial_bn(net), augment, composition=lambda *_: wrong["clips"], compile=compile
        )
    net.zero_grad()
    step(x, torch.arange(6) % 5)["loss"].backward()
    return step, [None if p.grad is None else p.grad.clone() for p in net.parameters()]


@pytest.mark.slow
@pytest.mark.parametrize("steps, attack_bn", [(1, "frozen"), (3, "frozen"), (1, "batch")])
def test_in_a_compiled_step(generator, uncompiled_graphs, steps, attack_bn):
    net, x = made(generator)
    other = copy.deepcopy(net)
    wrong = {}
    eager = compiled = None
    for clips in (3, 2, 6, 1, 5):
        wrong["clips"] = torch.arange(6) < clips
        eager, expected = attacked(other, x, wrong, steps, attack_bn, eager, compile=False)
        compiled, actual = attacked(net, x, wrong, steps, attack_bn, compiled)
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert not compiled._graphs.reasons
    assert 0 < sum(map(len, compiled._graphs._graphs.values())) <= 4


@pytest.mark.slow
def test_a_model_that_changes_is_traced_again(generator, uncompiled_graphs):
    net, x = made(generator, Shifted)
    other = copy.deepcopy(net)
    wrong = {"clips": torch.arange(6) < 3}
    eager = compiled = None
    for by in (1, 2, 1):
        net.by = other.by = by
        eager, expected = attacked(other, x, wrong, step=eager, compile=False)
        compiled, actual = attacked(net, x, wrong, step=compiled)
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert len(compiled._graphs._graphs) == 2 and not compiled._graphs.reasons


class Foreign(Net):
    """A weight that is no parameter of the model."""

    weights = (torch.eye(6)[:, :, None, None],)

    def features(self, x):
        features = super().features(x)
        return nn.functional.conv2d(features.flatten(0, 1), self.weights[0]).unflatten(0, features.shape[:2])


@pytest.mark.slow
def test_what_cannot_be_traced_is_replayed_and_says_why(generator, uncompiled_graphs):
    net, x = made(generator, Foreign)
    other = copy.deepcopy(net)
    wrong = {"clips": torch.arange(6) < 3}
    _, expected = attacked(other, x, wrong, compile=False)
    with pytest.warns(UserWarning, match="not one graph but operations: .* is no parameter or buffer"):
        compiled, actual = attacked(net, x, wrong)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert len(compiled._graphs.reasons) == 1


def test_copies_trace_their_own_model(generator):
    net, _ = made(generator)
    step = TAFStep(add_adversarial_bn(net), TemporalAugment(), compile=True)
    step._graphs._graphs["form"] = []
    for copied in (copy.deepcopy(step), pickle.loads(pickle.dumps(step))):
        assert copied._graphs is not step._graphs and not copied._graphs._graphs
