"""The tables of the paper next to the numbers of runs."""

import dataclasses
import math
import statistics
from fractions import Fraction
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from taf_fast.data.synth import LONG_TERM
from taf_fast.parsing import parse_yaml
from taf_fast.report.record import RunRecord
from taf_fast.run.config import FinetuneConfig, names_of
from taf_fast.run.values import FREE_WITHIN_EXPERIMENT
from taf_fast.sweep.stats import difference, half_interval

_FREE = names_of(*FREE_WITHIN_EXPERIMENT)


@dataclasses.dataclass(frozen=True)
class Measured:
    """A mean over ``runs`` runs that differ in their seed alone, in percent.

    A difference is in points, and has half of its 95 % confidence interval over the seeds, if two or more
    seeds have both sides.
    """

    mean: float
    runs: int
    is_difference: bool = False
    half: float | None = None


@dataclasses.dataclass(frozen=True)
class PaperTable:
    """A table with an item for every row in ``labels``, ``paper`` and ``ours``.

    ``paper[row][column]`` is the paper's number. ``ours[row][column]`` has a value for every setting of the
    runs that fit the cell, in the order of the runs. ``footnotes`` say where the paper disagrees with itself.
    """

    title: str
    note: str
    keys: list[str]
    columns: list[str]
    labels: list[list[str]]
    paper: list[list[float]]
    ours: list[list[list[Measured]]]
    footnotes: list[str]


def paper_tables(runs: list[RunRecord]) -> list[PaperTable]:
    """The tables of ``paper.yaml``, filled with the runs that finished on the paper's data sets.

    A run belongs to a cell if its configuration has the values in ``where``; for ``num_frames`` none and T
    both mean all frames. Runs on other data, such as a synthetic set in a real one's format, fit no cell.
    """
    content = _content()
    classes = content["classes"]
    known = [run for run in runs if run.result and classes.get(run.config.dataset) == len(run.classes)]
    return [_table(table, known) for table in content["tables"]]


def footnotes() -> list[str]:
    """Where the paper's algorithm and equations disagree with themselves."""
    return _content()["footnotes"]


def long_term_classes(classes: tuple[str, ...]) -> list[str]:
    """The long-term motions among ``classes``: the 35 of the paper's Table 5, which are of
    Something-Something V1 and V2, and those of the synthetic set."""
    known = {*LONG_TERM, *table_5()}
    return [name for name in classes if name in known]


def table_5() -> dict[str, tuple[int, float]]:
    """The paper's Table 5: the name of a class -> its place in Fig. 4, from 1, and its change in points."""
    (table,) = (t for t in _content()["tables"] if any(c["measure"] == "class" for c in t["columns"]))
    rows = [(*row["labels"], *row["paper"]) for row in table["rows"]]
    return {name: (place, points) for name, place, points in rows}


def beside_table_5(rows: list[dict]) -> Table:
    """Those of :func:`taf_fast.report.classes.class_rows` that are in the paper's Table 5, beside it."""
    table = Table(
        "place", "paper's", "class", "difference", "paper's", title="Table 5, points", box=box.MARKDOWN
    )
    known = table_5()
    for row in rows:
        if row["class"] in known:
            place, points = known[row["class"]]
            ours = difference(row["difference_points"], row["difference_points_ci95"])
            numbers = (ours, difference(points, None))
            table.add_row(str(row["place"]), str(place), Text(row["class"]), *numbers)
    return table


def _content() -> dict:
    return parse_yaml(Path(__file__).with_name("paper.yaml").read_text(encoding="utf-8"))


def _table(table: dict, runs: list[RunRecord]) -> PaperTable:
    rows = table["rows"]
    return PaperTable(
        table["title"],
        table.get("note", "").strip(),
        table["keys"],
        [column["name"] for column in table["columns"]],
        labels=[[str(label) for label in row["labels"]] for row in rows],
        paper=[row["paper"] for row in rows],
        ours=[[_cell(table, row, column, runs) for column in table["columns"]] for row in rows],
        footnotes=table.get("footnotes", []),
    )


def _cell(table: dict, row: dict, column: dict, runs: list[RunRecord]) -> list[Measured]:
    where = table["where"] | row.get("where", {}) | column.get("where", {})
    ours = _values(runs, where, column, row["labels"][0])
    if "minus" not in column:
        return [_mean(setting) for setting in ours]
    # With several settings on either side the difference would be ambiguous.
    base = _values(runs, where | column["minus"], column, row["labels"][0])
    if len(ours) != 1 or len(base) != 1:
        return []
    return [_difference(ours[0], base[0])]


def _values(runs: list[RunRecord], where: dict, column: dict, name: str) -> list[list[tuple[int, float]]]:
    """For every setting of the runs that fit, the seeds with their values."""
    settings: dict[str, list[tuple[int, float]]] = {}
    for run in runs:
        value = _measured(run, column, name) if _fits(run.config, where) else None
        if value is not None:
            setting = str([_value(run.config, field) for field in vars(run.config) if field not in _FREE])
            settings.setdefault(setting, []).append((run.config.seed, value))
    return list(settings.values())


def _mean(setting: list[tuple[int, float]]) -> Measured:
    return Measured(statistics.fmean(value for _, value in setting), len(setting))


def _difference(ours: list[tuple[int, float]], base: list[tuple[int, float]]) -> Measured:
    by_seed, base_by_seed = dict(ours), dict(base)
    differences = [by_seed[seed] - base_by_seed[seed] for seed in by_seed if seed in base_by_seed]
    if len(differences) > 1:
        return Measured(statistics.fmean(differences), len(differences), True, half_interval(differences))
    return Measured(_mean(ours).mean - _mean(base).mean, min(len(ours), len(base)), True)


def _fits(config: FinetuneConfig, where: dict) -> bool:
    return all(_same(_value(config, name), expected) for name, expected in where.items() if expected != "any")


def _value(config: FinetuneConfig, name: str):
    value = getattr(config, name)
    return None if name == "num_frames" and value == config.num_segments else value


def _same(value, expected) -> bool:
    if isinstance(expected, str) and "/" in expected:
        expected = float(Fraction(expected))
    if isinstance(expected, float) and isinstance(value, (int, float)):
        return math.isclose(value, expected, rel_tol=1e-6)
    return value == expected


def _measured(run: RunRecord, column: dict, name: str) -> float | None:
    """In percent; None if the run's folder does not have it."""
    measure = column["measure"]
    if measure in ("top1", "top5"):
        return 100 * run.result[measure]
    if measure == "class":
        label = run.classes.index(name) if name in run.classes else None
        places = [p.place for p in run.predictions if p.label == label]
        return 100 * statistics.fmean(place < 1 for place in places) if places else None
    corrupted = run.corrupted(column.get("score", "top1")).get(measure)
    return None if corrupted is None else 100 * corrupted
