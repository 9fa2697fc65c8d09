"""The claims about a GPU run, checked on results with known values."""

import importlib.util
from pathlib import Path
from random import Random

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bars():
    spec = importlib.util.spec_from_file_location("bars", BENCHMARKS / "bars.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.bars


def op(random: Random, case: str, clips: int, **values) -> dict:
    good = {"against_copy": 0.95, "against_eager": 9.0, "against_compiled": 1.2}
    row = {"variant": "taf_fast", "op": "pgd_step", "case": case, "clips": clips}
    return row | {key: value + random.random() / 100 for key, value in good.items()} | values


def step(name: str, share: float, milliseconds: float, k: int = 1, **values) -> dict:
    row = {"step": name, "share": share, "attack_steps": k, "clips_per_second": 32e3 / milliseconds}
    return row | {"milliseconds": {"p50": milliseconds}} | values


def test_the_worst_case_decides(bars, seed):
    random = Random(seed)
    rows = [op(random, "good", clips) for clips in (8, 32, 64)]
    rows += [
        op(random, "small", 8, against_copy=0.3),  # few clips: no claim
        op(random, "slow", 64, against_copy=0.89),
        op(random, "lost", 32, against_compiled=0.99),
        op(random, "head", 32, op="cam_gradient", against_eager=7.9),
        op(random, "alone", 32) | {"variant": "eager", "against_copy": 0.1},
    ]
    case = {"model": "tsm_resnet50", "clips": 32, "frames": 8}
    case["steps"] = [
        step("plain", 0.0, 51.2, 0),
        step("taf_fast", 0.25, 68.0, over_plain=1 / 3, memory_against_plain=1.1),
        step("taf_fast", 1.0, 122.4, over_plain=1.4, memory_against_plain=1.15),
        step("taf_fast", 1.0, 500.0, 3, over_plain=9.0, memory_against_plain=9.0),
        step("naive", 0.25, 204.0, over_plain=3.0, memory_against_plain=2.0),
        step("naive", 1.0, 350.0, over_plain=5.0, memory_against_plain=2.0),
        step("naive, compiled", 0.25, 100.0, over_plain=1.0, memory_against_plain=2.0),
    ]
    found = {bar.claim: bar for bar in bars({"rows": rows, "steps": [case]})}
    values = [(bar.worst, bar.case, bar.holds) for bar in found.values()]
    assert values == [
        ("89%", "slow", False),
        ("7.90x", "head", True),
        ("0.99x", "lost", False),
        ("7.90x", "head", False),
        ("+6.7 points", "tsm_resnet50 B=32 T=8 p=1.00", False),
        ("1.15x", "tsm_resnet50 B=32 T=8 p=1.00", True),
        ("2.86x", "tsm_resnet50 B=32 T=8 p=1.00", False),
        ("5000", "tsm_resnet50 B=32 T=8", True),
    ]
    case["steps"] = [case["steps"][0], step("taf_fast", 1.0, 110.0, over_plain=1.3, memory_against_plain=1.2)]
    (over, memory, frames) = bars({"rows": [], "steps": [case]})
    assert (over.worst, over.holds) == ("-3.3 points", True)
    assert (memory.worst, memory.holds) == ("1.20x", False) and frames.holds


def test_nothing_is_said_of_what_was_not_measured(bars):
    assert bars({"rows": [], "steps": []}) == []
