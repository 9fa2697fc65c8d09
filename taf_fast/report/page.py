"""One page of all that runs show."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import matplotlib

from taf_fast.data import DataError
from taf_fast.files import read_csv, write_text
from taf_fast.models import CheckpointError
from taf_fast.run.config import FinetuneConfig, RunError
from taf_fast.run.robustness import summary

from .attention import strip_figure, without_attention
from .classes import class_rows, class_summary, classes_figure
from .curves import curves_figure, loss_rows
from .html import FIGURES, Section, details, heading, page, picture, sentence, table
from .names import short_names
from .paper import Measured, PaperTable, long_term_classes, paper_tables
from .run_folder import Run, read_run
from .run_strips import run_strips

# Of the clips left out of one run: a page is no place for thousands.
_LISTED = 50


def write_page(path: Path, folders: list[Path]) -> None:
    """Write one HTML file that shows runs: no script, no request, everything in it.

    The first run is what the others are compared with. What a folder does not hold is left out, with a
    sentence that says so. The same folders give the same bytes.

    Args:
        folders: of ``taf-fast finetune``, or of ``taf-fast sweep``: of these the table is shown, and their
            runs appear in the paper's tables alone.

    Raises:
        RunError, DataError, CheckpointError: a folder that is neither, or a damaged file in one.
    """
    for folder in folders:
        if sum(folder.resolve() == other.resolve() for other in folders) > 1:
            raise RunError(f"{folder} is given twice")
    names = short_names(folders)
    runs, swept, sections = [], [], []
    for name, folder in zip(names, folders, strict=True):
        if (folder / "table.csv").is_file():
            sections.append(Section(f"Sweep {name}", _sweep(folder)))
            swept += [read_run(config.parent, name) for config in sorted(folder.rglob("config.yaml"))]
        else:
            runs.append(read_run(folder, name))
    with matplotlib.rc_context(FIGURES):
        if runs:
            sections = [*_comparison(runs), *sections]
        # A run can be given beside the sweep it is of.
        known = {run.path.resolve(): run for run in runs + swept}
        sections.append(Section("The paper's tables", _paper(list(known.values()))))
        if runs:
            sections += _background(runs)
        write_text(path, page("taf-fast: " + ", ".join(names), sections))


def _comparison(runs: list[Run]) -> Iterator[Section]:
    yield Section("Summary", _summary(runs))
    yield Section("Loss", _losses(runs))
    yield Section("Change of every class", _classes(runs))
    yield Section("Attention", _strips(runs) + _attention(runs))
    yield Section("Robustness", _robustness(runs))


def _background(runs: list[Run]) -> Iterator[Section]:
    yield Section("Clips left out", _quarantine(runs))
    yield Section("Configuration", _configuration(runs))
    yield Section("Environment", _environment(runs))


def _lacking(runs: list[Run], attribute: str, reason: str) -> str:
    """A sentence for every run without the attribute."""
    return "".join(sentence(f"{run.name} {reason}.") for run in runs if not getattr(run, attribute))


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _summary(runs: list[Run]) -> str:
    header = [
        # Scores first: a phone shows no more than these.
        *("run", "top-1 %", "difference", "top-5 %", "loss", "attacked %", "s / step"),
        *("augmentation", "epochs", "model", "data"),
    ]
    base = next((run for run in runs if run.result), None)
    rows = [[*_scored(run, base), *_described(run)] for run in runs]
    unfinished = _lacking(runs, "result", "is unfinished: it has no scores or no weights yet")
    note = "" if base is None else f"The difference is in points of top-1, to {base.name}."
    return table("Scores on the validation clips", header, rows, note) + unfinished


def _described(run: Run) -> list[str]:
    config = run.config
    done = sum("val_loss" in line for line in run.metrics)
    return [
        config.augment,
        str(config.epochs) if run.result else f"{done} of {config.epochs}",
        config.model,
        config.dataset or Path(config.data).name,
    ]


def _scored(run: Run, base: Run | None) -> list[str]:
    if not run.result:
        return [f"{run.name} (unfinished)", *[""] * 6]
    result = run.result
    points = 100 * (result["top1"] - base.result["top1"])
    return [
        run.name,
        _percent(result["top1"]),
        "" if run is base else f"{points:+.2f}",
        _percent(result["top5"]),
        f"{result['val_loss']:.4f}",
        _percent(result["attacked_share"]),
        f"{result['seconds_per_step']:.3f}",
    ]


def _losses(runs: list[Run]) -> str:
    rows, missing = [], ""
    for run in runs:
        try:
            rows += loss_rows({run.name: run.path / "metrics.jsonl"})
        except RunError as error:
            missing += sentence(f"No curve of {run.name}: {error}.")
    if not rows:
        return missing
    cells = [
        [
            *(row["run"], str(row["epoch"]), f"{row['train_loss']:.4f}", f"{row['val_loss']:.4f}"),
            _percent(row["val_top1"]),
        ]
        for row in rows
    ]
    header = ["run", "epoch", "training loss", "validation loss", "validation top-1 %"]
    numbers = table("Losses of every epoch", header, cells)
    drawn = picture(curves_figure(rows), "Training and validation loss over the epochs of every run")
    return drawn + missing + details("Every epoch", numbers)


def _classes(runs: list[Run]) -> str:
    first, *others = runs
    if not others:
        return sentence("There is one run: nothing to compare it with.")
    return "".join(heading(f"{run.name} against {first.name}") + _changes(first, run) for run in others)


def _changes(before: Run, after: Run) -> str:
    try:
        for run in (before, after):
            if not (run.predictions and run.classes):
                raise RunError(f"{run.name} has no predictions or no weights")
        if before.classes != after.classes:
            raise RunError("the runs have different classes")
        long_term = long_term_classes(after.classes)
        rows = class_rows(after.classes, before.predictions, after.predictions, long_term)
    except RunError as error:
        return sentence(f"Left out: {error}.")
    cells = [
        [
            *(row["class"], "long-term" if row["long_term"] else "", str(row["clips"])),
            *(_percent(row["before"]), _percent(row["after"]), f"{100 * row['change']:+.2f}"),
        ]
        for row in rows
    ]
    header = ["class", "", "clips", f"{before.name} %", f"{after.name} %", "change"]
    numbers = table("Top-1 of every class", header, cells)
    alt = f"Change of the top-1 of every class from {before.name} to {after.name}"
    return (
        sentence(class_summary(rows)) + picture(classes_figure(rows), alt) + details("Every class", numbers)
    )


def _strips(runs: list[Run]) -> str:
    finished = [run for run in runs if run.weights.exists()]
    try:
        if not finished:
            raise RunError("no run has weights yet")
        strips = run_strips(finished, count=2)
    except (RunError, DataError, CheckpointError) as error:
        return sentence(f"No pictures of attention: {error}.")
    alt = "Frames of the clip, and the attention of {} laid over them"
    names = ", ".join(run.name for run in finished)
    return "".join(
        heading(f"Clip {strip.title}")
        + picture(strip_figure(strip.clip, strip.maps, ""), alt.format(names), "jpg")
        for strip in strips
    )


def _labels(run: Run, measured: dict[str, list[dict]]) -> Iterator[tuple[str, list[dict]]]:
    """The rows of each checkpoint in one of a run's files, under a name that tells them apart."""
    for checkpoint, rows in measured.items():
        yield run.name if len(measured) == 1 else f"{run.name}: {checkpoint}", rows


def _attention(runs: list[Run]) -> str:
    rows = []
    for label, measured in (pair for run in runs for pair in _labels(run, run.attention)):
        means = [fmean(row[column] for row in measured) for column in ("entropy", "top_share")]
        counts = (len(measured), without_attention(measured))
        rows.append([label, *map(str, counts), *(f"{mean:.4f}" for mean in means)])
    note = (
        "Means over clips; 1 is the entropy of attention that is spread evenly, as that of clips without any "
        "counts too."
    )
    header = ["run", "clips", "without attention", "entropy", "share of the top frame"]
    measures = table("Spread of attention over the frames", header, rows, note)
    return measures + _lacking(runs, "attention", "has no attention.csv")


def _robustness(runs: list[Run]) -> str:
    missing = _lacking(runs, "robustness", "has no robustness.csv")
    measured = [pair for run in runs for pair in _labels(run, run.robustness)]
    if not measured:
        return missing
    means = [(label, summary(rows)) for label, rows in measured]
    names = list(dict.fromkeys(name for _, found in means for name in found))
    cells = [[label, *_cells(found, names)] for label, found in means]
    whole = table(
        "Top-1 % on corrupted clips",
        ["run", *(name.replace("_", " ") for name in names)],
        cells,
        "Of every corruption, the mean over its severities.",
    )
    each: dict[tuple[str, str], dict[str, float]] = {}
    for label, rows in measured:
        for row in rows:
            each.setdefault((row["corruption"], label), {})[row["severity"]] = row["top1"]
    severities = sorted({severity for found in each.values() for severity in found})
    order = sorted(each, key=lambda pair: names.index(pair[0]))
    cells = [[name.replace("_", " "), label, *_cells(each[name, label], severities)] for name, label in order]
    header = ["corruption", "run", *severities]
    return whole + missing + details("Every severity", table("Top-1 % by severity", header, cells))


def _cells(found: dict[str, float], names: list[str]) -> list[str]:
    return [_percent(found[name]) if name in found else "" for name in names]


def _sweep(folder: Path) -> str:
    path = folder / "table.csv"
    try:
        rows = read_csv(path)
        names = [name for row in rows[:1] for name in row if not name.endswith(("_std", "_ci95"))]
        cells = [[_spread(row, name) for name in names] for row in rows]
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{path} is damaged: {error}") from None
    if not rows:
        return sentence("No run of the sweep has finished yet.")
    note = "Means over seeds, with their standard deviation; top-1, top-5 and shares are fractions."
    return table("Arms", [name.replace("_", " ") for name in names], cells, note)


def _spread(row: dict[str, str], name: str) -> str:
    """A mean with its deviation, which one seed does not have; what is no mean as it is."""
    mean, deviation = row[name], row.get(f"{name}_std")
    if deviation is None or not mean:
        return mean or ""
    return " ± ".join(f"{float(value):.4f}" for value in (mean, deviation) if value)


def _paper(runs: list[Run]) -> str:
    intro = sentence(
        "The paper's numbers, and ours of runs with its data, model and settings: the mean over those that "
        "differ in their seed alone, and several values where they differ in more. Where the paper's column "
        "is empty its number is not in this program, where ours is empty nothing was measured."
    )
    return intro + "".join(_paper_table(shown) for shown in paper_tables(runs))


def _paper_table(shown: PaperTable) -> str:
    if not shown.labels:
        return sentence(f"{shown.title}. {shown.note}")
    groups = [("", len(shown.keys)), *((column, 2) for column in shown.columns)]
    header = [*shown.keys, *["paper", "ours"] * len(shown.columns)]
    rows = []
    for labels, paper, ours in zip(shown.labels, shown.paper, shown.ours, strict=True):
        pairs = [
            ("" if number is None else f"{number:.1f}", " / ".join(map(_ours, measured)))
            for number, measured in zip(paper, ours, strict=True)
        ]
        rows.append([*labels, *itertools.chain(*pairs)])
    return table(shown.title, header, rows, shown.note, groups)


def _ours(measured: Measured) -> str:
    runs = f" ({measured.runs} runs)" if measured.runs > 1 else ""
    return f"{measured.mean:.1f}{runs}"


def _quarantine(runs: list[Run]) -> str:
    rows, notes = [], ""
    for run in runs:
        found = [
            [run.name, split, id, reason]
            for split, clips in run.quarantine.items()
            for id, reason in clips.items()
        ]
        rows += found[:_LISTED]
        if not found:
            notes += sentence(f"{run.name} left out no clip.")
        if len(found) > _LISTED:
            notes += sentence(f"{run.name} left out {len(found)} clips; its quarantine.json has them all.")
    return table("Clips that could not be used", ["run", "split", "clip", "reason"], rows) + notes


def _configuration(runs: list[Run]) -> str:
    header = ["", *(run.name for run in runs)]
    names = [field.name for field in dataclasses.fields(FinetuneConfig)]
    rows = [[name, *(_shown(getattr(run.config, name)) for run in runs)] for name in names]
    different = [row for row in rows if len(set(row[1:])) > 1]
    differences = table("What the runs differ in", header, different)
    return differences + details("Everything", table("Configuration", header, rows))


def _shown(value) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _environment(runs: list[Run]) -> str:
    known = [run for run in runs if run.environment]
    names = list(dict.fromkeys(name for run in known for name in run.environment))
    rows = [[name, *(str(run.environment.get(name, "")) for run in known)] for name in names]
    missing = _lacking(runs, "environment", "has no environment.json")
    return table("Versions", ["", *(run.name for run in known)], rows) + missing
