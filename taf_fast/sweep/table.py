"""The tables of a sweep: the numbers of each run, and their mean and deviation over seeds."""

import statistics
from pathlib import Path

from rich import box
from rich.table import Table

from taf_fast.errors import RunError
from taf_fast.files import write_csv
from taf_fast.measure.base import Measure
from taf_fast.plain import printable
from taf_fast.run.folder import MEASURES, RunFolder
from taf_fast.sweep.plan import START, PlannedRun, Sweep
from taf_fast.sweep.stats import difference, half_interval

Numbers = dict[str, float]

DIFFERENCE = "top1_difference_points"

# Title, factor and format of the columns printed.
_PRINTED = {
    "top1": ("top-1 %", 100, ".1f"),
    DIFFERENCE: ("difference", 1, ""),
    "top5": ("top-5 %", 100, ".1f"),
    "val_loss": ("loss", 1, ".3f"),
    "train_loss": ("training loss", 1, ".3f"),
    "attacked_share": ("attacked %", 100, ".0f"),
    "robustness_top1": ("corrupted top-1 %", 100, ".1f"),
    "attention_entropy": ("entropy", 1, ".3f"),
    "attention_top_share": ("top share", 1, ".3f"),
}
_QUANTITIES = (*_PRINTED, "seconds_per_step")


def measured_numbers(folder: RunFolder, measure: Measure) -> Numbers:
    """A run's numbers of a measure, over all checkpoints in its CSV; empty if it is missing or damaged."""
    try:
        rows = [row for found in folder.read_measured(measure).values() for row in found]
    except RunError:
        return {}
    return measure.numbers(rows) if rows else {}


def write_tables(out: Path, sweep: Sweep) -> Table:
    """Write the results of a sweep so far.

    ``runs.csv`` has a row for every finished run, and ``table.csv`` a row for all runs that differ in their
    seed alone. There every number is the mean over seeds, with ``_std``, the sample standard deviation, and
    ``_ci95``, half of the mean's 95 % confidence interval by Student's t. ``top1_difference_points`` is the
    difference to the first arm's run of the same seed, in points: of 100 times the fractions.

    Returns:
        ``table.csv`` to print.
    """
    finished: list[tuple[PlannedRun, Numbers]] = []
    for run in sweep.runs:
        if (numbers := run.folder.read_result()) is not None:
            for measure in sweep.measure:
                numbers |= measured_numbers(run.folder, MEASURES[measure])
            finished.append((run, numbers))
    first = _arm(next(run for run in sweep.runs if run.arm != START))
    reference = {run.config.seed: numbers["top1"] for run, numbers in finished if _arm(run) == first}
    for run, numbers in finished:
        if _arm(run) != first and run.config.seed in reference:
            numbers[DIFFERENCE] = 100 * (numbers["top1"] - reference[run.config.seed])
    names = [name for name in _QUANTITIES if any(name in numbers for _, numbers in finished)]
    grid = list(sweep.runs[-1].point)  # a start has none

    each: list[dict] = []
    arms: dict[Path, tuple[dict, list[Numbers]]] = {}
    for run, numbers in finished:
        place = {"arm": run.arm} | {name: run.point.get(name) for name in grid}
        measured = {name: numbers.get(name) for name in names}
        each.append(place | {"seed": run.config.seed} | measured | {"folder": str(run.folder.path)})
        arms.setdefault(_arm(run), (place, []))[1].append(numbers)
    rows = []
    for place, seeds in arms.values():
        row: dict = place | {"seeds": len(seeds)}
        for name in names:
            row |= _summary(name, [numbers[name] for numbers in seeds if name in numbers])
        rows.append(row)
    write_csv(out / "runs.csv", each)
    write_csv(out / "table.csv", rows)
    return _table(rows)


def _arm(run: PlannedRun) -> Path:
    """The folder of the runs that differ from this one in their seed alone."""
    return run.folder.path.parent


def _summary(name: str, values: list[float]) -> dict[str, float | None]:
    return {
        name: statistics.fmean(values) if values else None,
        f"{name}_std": statistics.stdev(values) if len(values) > 1 else None,
        f"{name}_ci95": half_interval(values),
    }


#: What the ± of :func:`shown_table` are.
SPREAD = (
    "± is the standard deviation over seeds; for the difference in points of top-1, to the first arm's runs "
    "of the same seeds, half of its 95 % confidence interval."
)


def shown_table(rows: list[dict]) -> tuple[list[str], list[list[str]]]:
    """The rows of ``table.csv`` as they are shown: the titles of the columns, and the rows as text.

    Args:
        rows: with numbers, or text that stands for them, and None or "" for none. Values of the grid that
            are empty in all of them are left out.
    """
    columns = list(rows[0]) if rows else []
    places = columns[: columns.index("seeds") + 1] if rows else []
    places = [name for name in places if any(row[name] not in (None, "") for row in rows)]
    names = [name for name in _PRINTED if name in columns]
    titles = ["" if name == "arm" else name for name in places] + [_PRINTED[name][0] for name in names]
    cells = [["" if row[name] is None else str(row[name]) for name in places] for row in rows]
    return titles, [
        [*place, *(_cell(row, name) for name in names)] for place, row in zip(cells, rows, strict=True)
    ]


def _table(rows: list[dict]) -> Table:
    table = Table(box=box.MARKDOWN, caption_justify="left")
    if any(row["seeds"] > 1 for row in rows):
        table.caption = SPREAD
    titles, cells = shown_table(rows)
    numbers = {title for title, _, _ in _PRINTED.values()}
    for title in titles:
        table.add_column(printable(title), justify="right" if title in numbers else "left", no_wrap=True)
    for row in cells:
        table.add_row(*map(printable, row))
    return table


def _cell(row: dict, name: str) -> str:
    """Mean and standard deviation; for a difference, mean and confidence interval."""
    mean, std, half = (_number(row.get(f"{name}{suffix}")) for suffix in ("", "_std", "_ci95"))
    if mean is None:
        return ""
    if name == DIFFERENCE:
        return difference(mean, half)
    _, factor, form = _PRINTED[name]
    text = format(factor * mean, form)
    return text if std is None else f"{text} ± {format(factor * std, form)}"


def _number(value: float | str | None) -> float | None:
    return None if value in (None, "") else float(value)
