"""Counts of a step: exact for operations that can be counted by hand, and no higher than they were."""

import pytest
import torch
import torch.nn.functional as F
from run_command import error_of, output_of
from torch.utils.flop_counter import FlopCounterMode

from taf_fast import PlainStep, models
from taf_fast.bench.counts import Launch, Wait, _Counter, count_step
from taf_fast.bench.measure import peak_bytes
from taf_fast.bench.prediction import Card, predicted_seconds
from taf_fast.bench.steps import _resident

#: Launches and unfused bytes of TSM-ResNet-18, which may fall and not rise; TAF attacks 2 of 10 clips, K = 2.
#: Launches do not depend on sizes. A change that lowers a number writes the lower one here.
PLAIN = (282, 7.777e9)
TAF = (868, 11.243e9)
NOTHING_ATTACKED = (312, 7.777e9)


def held(counts, limits):
    launches, unfused_bytes = limits
    total = counts.total
    assert total.launches <= launches and total.unfused_bytes <= unfused_bytes, counts.phases


def test_operations_are_counted_as_their_kernels():
    x, weight = torch.ones(2, 3, 8, 8, requires_grad=True), torch.ones(4, 3, 3, 3)
    counter = _Counter(attacked=7)
    with counter:
        y = F.conv2d(x, weight)  # [2,4,6,6]
        y.relu().sum().backward()
        x.grad.view(-1)[:5].add_(1)
        assert int(torch.ones(1, dtype=torch.int64)) == 7
        torch._foreach_add_([torch.zeros(3)] * 130, 1)
    found = [(event.operation, event.bytes) for event in counter.events if isinstance(event, Launch)]
    image, kernel, out = 4 * 2 * 3 * 64, 4 * 108, 4 * 288
    assert found[:3] == [("convolution", image + kernel + out), ("relu", 2 * out), ("sum", out + 4)]
    assert ("convolution_backward", image + kernel + out) in found  # of the input alone
    assert ("threshold_backward", 2 * out + 4) in found  # sum's gradient is one number
    assert ("add_", 40) in found
    assert [bytes for name, bytes in found if name == "_foreach_add_"] == [130 * 24 / 2] * 2
    flops = [event.flops for event in counter.events if isinstance(event, Launch) and event.matrix]
    assert flops == [2 * 288 * 27] * 2
    (wait,) = (event for event in counter.events if isinstance(event, Wait))
    assert 0 < wait.launches < len(found)


def test_batch_norm_and_memory():
    counter = _Counter(attacked=0)
    with counter:
        x = torch.ones(4, 8, 5, 5)
        counter.start([x])
        F.batch_norm(x, None, None, training=True)
        first = torch.empty(10_000)
        del first
        kept = torch.empty(9_000)
    size = 4 * 800
    assert [event.bytes for event in counter.events] == [size, 2 * size + 2 * 4 * 8]
    assert counter.peak == size + 40_000 and kept.numel() == 9_000


def test_the_counts_of_a_step_are_those_of_a_real_one():
    """FLOPs of PyTorch's counter, and the memory that its profiler sees."""
    counted = count_step("tsm_resnet18", 2, 112, 8, "float32")
    model = models.build("tsm_resnet18", 174, 2)
    step = PlainStep(models.memory_format.channels_last(model), compile=False)
    clips, labels = torch.zeros(8, 2, 112, 112, 3, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        step.accumulate_grads(clips, labels)
    assert counted.total.flops == counter.get_total_flops()
    model.zero_grad()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    peak = peak_bytes(lambda: step.accumulate_grads(clips, labels), torch.device("cpu"))
    # The momentum is counted too, workspaces of convolutions are not.
    assert counted.peak_bytes == pytest.approx(peak + _resident(model) + 4 * parameters, rel=0.1)


@pytest.mark.slow
def test_launches_and_bytes_do_not_rise():
    plain, taf, nothing = (
        count_step("tsm_resnet18", batch_size=10, attacked=attacked, steps=2) for attacked in (None, 2, 0)
    )
    held(plain, PLAIN)
    held(taf, TAF)
    held(nothing, NOTHING_ATTACKED)
    assert (plain.total.waits, taf.total.waits) == (0, 1)
    assert taf.peak_bytes <= 1.05 * plain.peak_bytes


def test_prediction():
    card = Card("card", {"bfloat16": 100.0}, memory_rate=10.0, shortest=0.5, issue=1.0)
    events = [
        Launch("attack", "convolution", True, flops=400.0, bytes=30.0),  # issued at 1, done at 5
        Launch("attack", "add", False, flops=0.0, bytes=1.0),  # issued at 2, done at 5.5
        Launch("attack", "add", False, flops=0.0, bytes=20.0),  # issued at 3, done at 7.5
        Wait("attack", 2),
        Launch("attack", "mm", True, flops=10.0, bytes=50.0),  # issued at 6.5, done at 12.5
    ]
    assert predicted_seconds(events, "bfloat16", card) == 12.5


@pytest.mark.slow
def test_command(capsys, monkeypatch):
    small = (
        "bench",
        "--count",
        "--model",
        "tsm_resnet18",
        "--size",
        64,
        "--num-segments",
        2,
        "--batch-size",
        5,
    )
    printed = output_of(capsys, monkeypatch, *small, "--share", 0.2)
    assert "adversarial forward" in printed and "Predicted, not measured, for an H100" in printed
    last = printed.strip().splitlines()[-1]
    assert last.startswith("Against the plain step, TAF, p = 0.2: launches ")
    assert all(name in last for name in ("unfused bytes", "FLOPs 1.2", "peak memory"))
    for wrong in (
        ["--device", "cpu"],
        ["--profile"],
        ["--threads", 1],
        ["--no-channels-last"],
    ):
        assert "counts are those of a step in channels_last" in error_of(capsys, monkeypatch, *small, *wrong)
