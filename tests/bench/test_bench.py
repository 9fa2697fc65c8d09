"""The benchmark compares the steps that it claims to compare."""

import copy

import pytest
import torch
from reference.temporal_augment import clips_in_range
from run_command import error_of, output_of

from taf_fast import TAFStep, TemporalAugment, add_adversarial_bn, models
from taf_fast.bench import measure
from taf_fast.bench.measure import interleaved_seconds, peak_bytes, percentiles
from taf_fast.bench.naive import NaiveStep
from taf_fast.bench.steps import VARIANTS, Setting, first_clips, measure_steps

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", ["tsm_resnet18", "tpn_resnet18"])
def test_the_naive_step_is_taf_too(generator, name, steps):
    """On all clips, with gradients through the batch statistics, both steps compute the same gradients."""
    torch.manual_seed(generator.initial_seed())
    model = models.build(name, 5, 3, dropout=0.0).double()
    model.fc.weight.data *= 10
    x = clips_in_range(model, 4, 3, 36, generator)
    with torch.no_grad():
        labels = (copy.deepcopy(model)(x).argmax(1) + 1) % 5  # all wrong: no random attack labels
    naive, ours = add_adversarial_bn(copy.deepcopy(model)), add_adversarial_bn(model)
    out = TAFStep(
        ours, TemporalAugment(steps=steps, attack_bn="batch"), composition=first_clips(4), compile=False
    )
    expected = NaiveStep(naive, 4, steps).accumulate_grads(x, labels)
    actual = out.accumulate_grads(x, labels)
    assert actual["attacked"] == 4
    torch.testing.assert_close(actual["loss"], expected["loss"], rtol=1e-3, atol=0)
    for (key, a), b in zip(ours.named_parameters(), naive.parameters(), strict=True):
        if a.grad is not None and b.grad is not None:
            # A pixel whose gradient is rounding noise may move the other way.
            assert (a.grad - b.grad).norm() <= 0.02 * b.grad.norm() + 1e-9, key


@pytest.mark.slow
def test_all_steps_are_measured():
    costs = measure_steps(
        "tsm_resnet18",
        2,
        96,
        5,
        Setting(CPU),
        shares=(0.0, 0.5, 1.0),
        steps=(1, 3),
        repeats=1,
        profile=True,
        variants=("taf_fast", "naive", "one backward"),
    )
    keys = [(row.name, row.share, row.steps) for row in costs.rows]
    names = ("taf_fast", "naive", "one backward")
    assert keys == [
        ("plain", 0.0, 0),
        ("taf_fast", 0.0, 1),
        ("one backward", 0.0, 1),
        *((name, share, k) for share in (0.4, 1.0) for k in (1, 3) for name in names),
    ]
    assert all(row.seconds > 0 for row in costs.rows)
    forwards = {key: row.forwards for key, row in zip(keys, costs.rows, strict=True)}
    assert forwards["taf_fast", 1.0, 1] == 7 and forwards["naive", 1.0, 1] == 9
    assert forwards["taf_fast", 0.4, 1] == pytest.approx(4.6)
    # The clean backward comes before the adversarial forward: never two graphs, as the naive step has.
    memory = {key: row.bytes for key, row in zip(keys, costs.rows, strict=True)}
    assert memory["plain", 0.0, 0] < memory["taf_fast", 1.0, 1] < memory["one backward", 1.0, 1]
    assert memory["one backward", 1.0, 1] < memory["naive", 1.0, 1]
    assert "aten::convolution_backward" in costs.profile and costs.clips == 5


@pytest.mark.slow
def test_further_variants_in_bfloat16():
    setting = Setting(CPU, precision="bfloat16", channels_last=False)
    costs = measure_steps("tsm_resnet18", 2, 96, 4, setting, (0.5,), (1, 3), 1, variants=VARIANTS[:3])
    forwards = {(row.name, row.steps): row.forwards for row in costs.rows[1:]}
    assert forwards == {
        ("taf_fast", 1): 5,
        ("taf_fast", 3): 7,
        ("one backward", 1): 5,
        ("one backward", 3): 7,
        ("through batch statistics", 1): 5.5,
        ("through batch statistics", 3): 9.5,
    }


def test_peak_memory_and_time():
    def call():
        first = torch.empty(1000, 1000)
        del first
        return torch.empty(2000, 500).sum() + torch.empty(500, 500).sum()

    assert 4_000_000 <= peak_bytes(call, CPU) < 5_100_000
    order = []
    times = interleaved_seconds({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, CPU)
    assert order == ["a", "b"] * 3 and [len(times["a"]), len(times["b"])] == [2, 2]
    assert percentiles(iter([5.0, 1.0, 2.0, 4.0, 3.0, 6.0])) == {"p20": 2, "p50": 3.5, "p80": 5}


def test_rates(monkeypatch):
    calls = []

    def three_seconds(call, *_):
        calls.append(call[""]())
        return {"": [2.0, 9.0, 3.0]}

    monkeypatch.setattr(measure, "interleaved_seconds", three_seconds)
    assert measure.copy_rate(CPU) == 2 * 2**27 / 3
    assert measure.matrix_flops(CPU, torch.float32) == 2 * 1536**3 / 3
    assert len(calls) == 2


@pytest.mark.slow
def test_command(capsys, monkeypatch):
    small = ["--model", "tsm_resnet18", "--size", 32, "--num-segments", 2, "--batch-size", 4, "--repeats", 1]
    printed = output_of(capsys, monkeypatch, "bench", *small, "--device", "cpu", "--share", 0.5, "--profile")
    assert (
        "tsm_resnet18, 4 clips of 2 x 32 pixels, float32, channels_last, CPU" in printed
        and "over plain" in printed
    )
    assert "naive" in printed and "50%" in printed and "convolution_backward" in printed
    for wrong, message in (
        (["--model", "tsn"], "model must be one of"),
        (["--share", 1.5], "share must be between 0 and 1"),
        (["--repeats", 0], "must be at least 1"),
        (["--precision", "float16"], "precision must be one of float32, bfloat16, got 'float16'"),
    ):
        assert message in error_of(capsys, monkeypatch, "bench", *small, *wrong, "--device", "cpu")
