"""What this package claims of its speed on a GPU, held against the results of a run."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """A claim, the measured value that is farthest from it or barely within, and the case it is from."""

    claim: str
    worst: str
    case: str
    holds: bool


def bars(results: dict) -> list[Bar]:
    """Of what ``report.py`` collects; none for what was not measured."""
    return [*filter(None, (*_ops(results["rows"]), *_steps(results["steps"])))]


def _ops(rows: list[dict]) -> Iterator[Bar | None]:
    ours = [row for row in rows if row["variant"] == "taf_fast"]
    heads = [row for row in ours if row["op"] == "cam_gradient"]
    large = [row for row in ours if row["clips"] >= 32]

    def at_least(claim: str, bound: float, form: str, rows: list[dict], key: str) -> Bar | None:
        return _bar(claim, form, ((row[key], bound - row[key], row["case"]) for row in rows if key in row))

    yield at_least("ops, 32 clips or more: 90 % of a copy's bandwidth", 0.9, "{:.0%}", large, "against_copy")
    yield at_least("ops: 4 times as fast as eager", 4, "{:.2f}x", ours, "against_eager")
    yield at_least("ops: as fast as compiled", 1, "{:.2f}x", ours, "against_compiled")
    yield at_least("head: 8 times as fast as double backward", 8, "{:.2f}x", heads, "against_eager")


def _steps(cases: list[dict]) -> Iterator[Bar | None]:
    plain = [(row, case) for case in cases for row in case["steps"] if row["step"] == "plain"]
    one_attack_step = [
        (row, case)
        for case in cases
        for row in case["steps"]
        if (row["step"], row["attack_steps"]) == ("taf_fast", 1)
    ]

    def label(row: dict, case: dict) -> str:
        return f"{case['model']} B={case['clips']} T={case['frames']} p={row['share']:.2f}"

    def of(measured: Iterable[tuple[dict, dict, float]], excess) -> Iterator[tuple[float, float, str]]:
        return ((value, excess(value), label(row, case)) for row, case, value in measured)

    above = ((row, case, 100 * (row["over_plain"] - 4 * row["share"] / 3)) for row, case in one_attack_step)
    yield _bar("step: over plain by 4p/3 + 5 points", "+{:.1f}", of(above, lambda v: v - 5))
    memory = ((row, case, row["memory_against_plain"]) for row, case in one_attack_step)
    yield _bar("step: 1.15 times plain's memory", "{:.2f}x", of(memory, lambda v: v - 1.15))
    faster = (
        (row, case, naive["milliseconds"]["p50"] / row["milliseconds"]["p50"])
        for row, case in one_attack_step
        for naive in case["steps"]
        if (naive["step"], naive["attack_steps"], naive["share"]) == ("naive", 1, row["share"])
    )
    yield _bar("step: 3 times as fast as the naive one, eager", "{:.2f}x", of(faster, lambda v: 3 - v))
    frames = (
        (row, case, row["clips_per_second"] * case["frames"])
        for row, case in plain
        if case["model"] == "tsm_resnet50" and case["clips"] >= 32
    )
    yield _bar("plain TSM step, 32 clips or more: 5000 frames/s", "{:.0f}", of(frames, lambda v: 5000 - v))


def _bar(claim: str, form: str, measured: Iterable[tuple[float, float, str]]) -> Bar | None:
    """From values, by how much each is beyond what is claimed, and its case."""
    worst = max(measured, key=lambda one: one[1], default=None)
    if worst is None:
        return None
    value, excess, case = worst
    return Bar(claim, form.format(value), case, excess <= 0)
