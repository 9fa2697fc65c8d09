"""The tables of the paper beside what runs measured."""

import dataclasses
import math
import statistics
from fractions import Fraction
from pathlib import Path

import yaml

from taf_fast.data.synth import LONG_TERM
from taf_fast.run.config import FinetuneConfig

from .run_folder import Run

# What two runs of the same experiment may differ in: the seed, and where and how they were computed.
_FREE = {
    *("seed", "out", "manifest", "device", "compile", "decoder", "threads"),
    *("checkpoint_every", "quarantine_limit"),
}


@dataclasses.dataclass(frozen=True)
class Measured:
    """A mean over ``runs`` runs that differ in their seed alone, in percent or points."""

    mean: float
    runs: int


@dataclasses.dataclass(frozen=True)
class PaperTable:
    """``labels``, ``paper`` and ``ours`` have an item for every row; in the latter two, one for every column.

    A number of the paper that is not known here is None. ``ours`` has a value for every setting of the runs
    that fit the cell, in the order of the runs; it is empty where none does.
    """

    title: str
    note: str
    keys: list[str]
    columns: list[str]
    labels: list[list[str]]
    paper: list[list[float | None]]
    ours: list[list[list[Measured]]]


def paper_tables(runs: list[Run]) -> list[PaperTable]:
    """The tables of ``paper.yaml``, filled with the runs that finished on the paper's data sets.

    A run belongs to a cell if its configuration says what ``where`` says; ``num_frames`` may say none or T
    for all frames. Runs on other data, such as the synthetic set in a real one's format, belong to none.
    """
    content = _content()
    classes = content["classes"]
    known = [run for run in runs if run.result and classes.get(run.config.dataset) == len(run.classes)]
    return [_table(table, known) for table in content["tables"]]


def long_term_classes(classes: tuple[str, ...]) -> list[str]:
    """Those of ``classes`` that are long-term motions: the synthetic set's, and the paper's Table 5 as far as
    ``paper.yaml`` has it."""
    by_class = [t for t in _content()["tables"] if any(c["measure"] == "class" for c in t["columns"])]
    known = {*LONG_TERM, *(row["labels"][0] for table in by_class for row in table["rows"])}
    return [name for name in classes if name in known]


def _content() -> dict:
    return yaml.safe_load(Path(__file__).with_name("paper.yaml").read_text(encoding="utf-8"))


def _table(table: dict, runs: list[Run]) -> PaperTable:
    rows = table["rows"]
    return PaperTable(
        table["title"],
        table.get("note", "").strip(),
        table["keys"],
        [column["name"] for column in table["columns"]],
        labels=[[str(label) for label in row["labels"]] for row in rows],
        paper=[row["paper"] for row in rows],
        ours=[[_cell(table, row, column, runs) for column in table["columns"]] for row in rows],
    )


def _cell(table: dict, row: dict, column: dict, runs: list[Run]) -> list[Measured]:
    where = table["where"] | row.get("where", {}) | column.get("where", {})
    measure, name = column["measure"], row["labels"][0]
    ours = _means(runs, where, measure, name)
    if "minus" not in column:
        return ours
    # Several settings on either side would leave open what the difference is of.
    base = _means(runs, where | column["minus"], measure, name)
    if len(ours) != 1 or len(base) != 1:
        return []
    return [Measured(ours[0].mean - base[0].mean, min(ours[0].runs, base[0].runs))]


def _means(runs: list[Run], where: dict, measure: str, name: str) -> list[Measured]:
    settings: dict[str, list[float]] = {}
    for run in runs:
        value = _measured(run, measure, name) if _fits(run.config, where) else None
        if value is not None:
            setting = str([_value(run.config, field) for field in vars(run.config) if field not in _FREE])
            settings.setdefault(setting, []).append(value)
    return [Measured(statistics.fmean(values), len(values)) for values in settings.values()]


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


def _measured(run: Run, measure: str, name: str) -> float | None:
    """In percent; None if the run's folder does not have it."""
    if measure in ("top1", "top5"):
        return 100 * run.result[measure]
    if measure == "class":
        label = run.classes.index(name) if name in run.classes else None
        places = [p.place for p in run.predictions if p.label == label]
        return 100 * statistics.fmean(place < 1 for place in places) if places else None
    corrupted = run.corrupted().get(measure)
    return None if corrupted is None else 100 * corrupted
