"""The claims about this package's speed on a GPU, checked against the results of a run."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """A claim, the worst measured value for it, and the case that gave this value."""

    claim: str
    worst: str
    case: str
    holds: bool


def bars(results: dict) -> list[Bar]:
    """Check the claims against the results that ``report.py`` collects; skip claims that were not
    measured."""
    return [*_ops(results["rows"]), *_steps(results["steps"])]


def _ops(rows: list[dict]) -> Iterator[Bar]:
    ours = [row for row in rows if row["variant"] == "taf_fast"]
    heads = [row for row in ours if row["op"] == "cam_gradient"]
    large = [row for row in ours if row["clips"] >= 32]

    def of(rows: list[dict], key: str) -> Iterator[tuple[float, str]]:
        return ((row[key], row["case"]) for row in rows if key in row)

    copy, eager, compiled = "against_copy", "against_eager", "against_compiled"
    yield from _at_least("ops, 32 clips or more: 90 % of a copy's bandwidth", 0.9, "{:.0%}", of(large, copy))
    yield from _at_least("ops: 4 times as fast as eager", 4, "{:.2f}x", of(ours, eager))
    yield from _at_least("ops: as fast as compiled", 1, "{:.2f}x", of(ours, compiled))
    yield from _at_least("head: 8 times as fast as double backward", 8, "{:.2f}x", of(heads, eager))


def _steps(cases: list[dict]) -> Iterator[Bar]:
    excess, memory, naive, frames = [], [], [], []
    for case in cases:
        about = f"{case['model']} B={case['clips']} T={case['frames']}"
        plain, *others = case["steps"]
        if case["model"] == "tsm_resnet50" and case["clips"] >= 32:
            frames.append((plain["clips_per_second"] * case["frames"], about))
        eager = {row["share"]: row for row in others if (row["step"], row["attack_steps"]) == ("naive", 1)}
        for row in others:
            if (row["step"], row["attack_steps"]) != ("taf_fast", 1):
                continue
            share, label = row["share"], f"{about} p={row['share']:.2f}"
            excess.append((100 * (row["over_plain"] - 4 * share / 3), label))
            memory.append((row["memory_against_plain"], label))
            if share in eager:
                ratio = eager[share]["milliseconds"]["p50"] / row["milliseconds"]["p50"]
                naive.append((ratio, label))
    yield from _at_most("step: 4p/3 over plain and 5 points", 5, "{:+.1f} points", excess)
    yield from _at_most("step: 1.15 times plain's memory", 1.15, "{:.2f}x", memory)
    yield from _at_least("step: 3 times as fast as the naive one, eager", 3, "{:.2f}x", naive)
    yield from _at_least("plain TSM step, 32 clips or more: 5000 frames/s", 5000, "{:.0f}", frames)


def _at_least(claim: str, bound: float, form: str, measured: Iterable[tuple[float, str]]) -> Iterator[Bar]:
    for value, case in sorted(measured)[:1]:
        yield Bar(claim, form.format(value), case, value >= bound)


def _at_most(claim: str, bound: float, form: str, measured: Iterable[tuple[float, str]]) -> Iterator[Bar]:
    for value, case in sorted(measured)[-1:]:
        yield Bar(claim, form.format(value), case, value <= bound)
