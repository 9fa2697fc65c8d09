"""What the runs of a sweep come to: the numbers of each, and their mean and deviation over seeds."""

import json
import math
import statistics
from pathlib import Path

from rich import box
from rich.table import Table

from taf_fast.files import read_csv, write_csv
from taf_fast.run.metrics import read_metrics
from taf_fast.run.robustness import summary
from taf_fast.run.sweep_plan import START, Sweep

Numbers = dict[str, float]

# Title, factor and format of what is printed.
_PRINTED = {
    "top1": ("top-1 %", 100, ".1f"),
    "top1_difference": ("difference", 100, "+.1f"),
    "top5": ("top-5 %", 100, ".1f"),
    "val_loss": ("loss", 1, ".3f"),
    "train_loss": ("training loss", 1, ".3f"),
    "attacked_share": ("attacked %", 100, ".0f"),
    "robustness_top1": ("corrupted top-1 %", 100, ".1f"),
    "attention_entropy": ("entropy", 1, ".3f"),
    "attention_top_share": ("top share", 1, ".3f"),
}
_QUANTITIES = (*_PRINTED, "seconds_per_step")


def read_result(folder: Path) -> Numbers | None:
    """The numbers of a finished run; None for one that is not finished, or whose result is damaged.

    ``top1``, ``top5`` and ``attacked_share`` in [0,1]; the cross-entropies ``val_loss`` and
    ``train_loss``, the latter of clean clips over the steps of the last epoch; ``seconds_per_step``.
    """
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        scores = result["evaluation"]
        numbers = {"top1": scores["top1"], "top5": scores["top5"], "val_loss": scores["loss"]}
        numbers |= {name: result[name] for name in ("attacked_share", "seconds_per_step")}
        numbers = {name: float(value) for name, value in numbers.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not (folder / "model.safetensors").is_file():
        return None
    steps = [line for line in read_metrics(folder / "metrics.jsonl") if "clean_loss" in line]
    last = [line["clean_loss"] for line in steps if line["epoch"] == steps[-1]["epoch"]]
    return numbers | ({"train_loss": statistics.fmean(last)} if last else {})


def read_measured(folder: Path, measure: str) -> Numbers | None:
    """What the CSV of a measure comes to; None if a run does not have it, or has it damaged.

    robustness: mean top-1 over corruptions and severities. attention: means over clips.
    """
    try:
        rows = read_csv(folder / f"{measure}.csv")
        if measure == "robustness":
            mean = summary([row | {"top1": float(row["top1"])} for row in rows])["mean"]
            return {"robustness_top1": mean}
        columns = ("entropy", "top_share")
        return {f"attention_{name}": statistics.fmean(float(row[name]) for row in rows) for name in columns}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_tables(out: Path, sweep: Sweep) -> Table:
    """Write what is known of a sweep: ``runs.csv``, a row for every finished run, and ``table.csv``, one for
    all that differ by their seeds alone.

    In the latter every number is a mean over seeds, with ``_std``, the sample standard deviation, and
    ``_ci95``, half of the mean's 95 % confidence interval by Student's t. ``top1_difference`` is that to the
    run of the first arm with the same seed.

    Returns:
        ``table.csv`` to print.
    """
    finished = []
    for run in sweep.runs:
        if (numbers := read_result(run.folder)) is not None:
            for measure in sweep.measure:
                numbers |= read_measured(run.folder, measure) or {}
            finished.append((run, numbers))
    first = next(run for run in sweep.runs if run.arm != START).folder.parent
    reference = {run.config.seed: numbers["top1"] for run, numbers in finished if run.folder.parent == first}
    for run, numbers in finished:
        if run.folder.parent != first and run.config.seed in reference:
            numbers["top1_difference"] = numbers["top1"] - reference[run.config.seed]
    names = [name for name in _QUANTITIES if any(name in numbers for _, numbers in finished)]
    grid = list(sweep.runs[-1].point)  # a start has none

    each, arms = [], {}
    for run, numbers in finished:
        place = {"arm": run.arm} | {name: run.point.get(name) for name in grid}
        measured = {name: numbers.get(name) for name in names}
        each.append(place | {"seed": run.config.seed} | measured | {"folder": str(run.folder)})
        arms.setdefault(run.folder.parent, (place, []))[1].append(numbers)
    rows = []
    for place, seeds in arms.values():
        row = place | {"seeds": len(seeds)}
        for name in names:
            row |= _summary(name, [numbers[name] for numbers in seeds if name in numbers])
        rows.append(row)
    write_csv(out / "runs.csv", each)
    write_csv(out / "table.csv", rows)
    return _table(rows, ["arm", *grid, "seeds"], [name for name in names if name in _PRINTED])


def _summary(name: str, values: list[float]) -> dict[str, float | None]:
    mean = std = interval = None
    if values:
        mean = statistics.fmean(values)
    if len(values) > 1:
        std = statistics.stdev(values)
        interval = student_t(len(values) - 1) * std / math.sqrt(len(values))
    return {name: mean, f"{name}_std": std, f"{name}_ci95": interval}


def student_t(freedom: int) -> float:
    """The t that a variable of Student's distribution with ``freedom`` >= 1 degrees exceeds, up or down, with
    probability .05."""
    # Of all angles atan(t / sqrt(freedom)); the probability grows with them.
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if _within(middle, freedom) < 0.95 else (low, middle)
    return math.sqrt(freedom) * math.tan(middle)


def _within(angle: float, freedom: int) -> float:
    """Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    odd, sine, cosine = freedom % 2, math.sin(angle), math.cos(angle)
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def _table(rows: list[dict], places: list[str], names: list[str]) -> Table:
    """Of the places, those that are empty in all rows are left out."""
    table = Table(box=box.MARKDOWN, caption_justify="left")
    if any(row["seeds"] > 1 for row in rows):
        table.caption = (
            "± is the standard deviation over seeds; for the difference in top-1, to the first arm's runs of "
            "the same seeds, half of its 95 % confidence interval."
        )
    shown = [place for place in places if any(row[place] for row in rows)]
    for place in shown:
        table.add_column("" if place == "arm" else place, no_wrap=True)
    for name in names:
        table.add_column(_PRINTED[name][0], justify="right", no_wrap=True)
    for row in rows:
        cells = [_cell(row, name) for name in names]
        table.add_row(*("" if row[place] is None else str(row[place]) for place in shown), *cells)
    return table


def _cell(row: dict, name: str) -> str:
    """Mean and standard deviation; for a difference, mean and confidence interval."""
    _, factor, form = _PRINTED[name]
    mean, spread = row[name], row[name + ("_ci95" if name == "top1_difference" else "_std")]
    if mean is None:
        return ""
    text = format(factor * mean, form)
    return text if spread is None else f"{text} ± {format(factor * spread, form.removeprefix('+'))}"
