"""One page of everything that runs measured."""

import dataclasses
import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from taf_fast.data import DataError
from taf_fast.errors import RunError
from taf_fast.files import read_csv, write_text
from taf_fast.measure.attention import summary as attention_summary
from taf_fast.measure.attention import without_attention
from taf_fast.measure.by_class import class_scores, confusion_matrix, mean_class_accuracy
from taf_fast.measure.robustness import summary
from taf_fast.models import CheckpointError
from taf_fast.report.attended import attended_clips
from taf_fast.report.classes import class_rows, class_summary, classes_figure, paired_half_interval
from taf_fast.report.confusion import confusion_figure
from taf_fast.report.curves import curves_figure, loss_rows
from taf_fast.report.html import Section, details, heading, page, picture, sentence, table
from taf_fast.report.names import short_names
from taf_fast.report.paper import Measured, PaperTable, footnotes, long_term_classes, paper_tables
from taf_fast.report.record import RunRecord, is_sweep, read_run, run_folders
from taf_fast.report.strips import strips_figure
from taf_fast.run.config import FinetuneConfig
from taf_fast.run.folder import RunFolder
from taf_fast.sweep.stats import difference
from taf_fast.sweep.table import SPREAD, shown_table

_AUGMENTATIONS = {
    "none": "none (plain fine-tuning)",
    "ta": "temporal augmentation (TAF)",
    "ce": "cross-entropy attack",
}

# The number of left-out clips listed for each run; thousands would bury the page.
_LISTED = 50


def write_page(path: Path, folders: list[Path]) -> None:
    """Write one self-contained HTML file about runs, without scripts or network requests.

    The other runs are compared with the first. The page leaves out what a folder lacks and says so. The same
    folders give the same bytes.

    Args:
        folders: of ``taf-fast finetune`` or ``taf-fast sweep``, or that hold such folders. For a sweep the
            page shows its table; its runs appear only in the paper's tables.

    Raises:
        RunError, DataError, CheckpointError: a folder is neither, or a file in one is damaged.
    """
    for folder in folders:
        if sum(folder.resolve() == other.resolve() for other in folders) > 1:
            raise RunError(f"{folder} is given twice")
    folders = run_folders(folders)
    names = short_names(folders)
    runs, swept, sections = [], [], []
    for name, folder in zip(names, folders, strict=True):
        if is_sweep(folder):
            sections.append(Section(f"Sweep {name}", _sweep(folder)))
            configs = sorted(folder.rglob(RunFolder(folder).config.name))
            swept += [read_run(config.parent, name) for config in configs]
        else:
            runs.append(read_run(folder, name))
    if runs:
        sections = [*_comparison(runs), *sections]
    # A run can be given together with the sweep that it belongs to.
    known = {run.folder.path.resolve(): run for run in runs + swept}
    sections.append(Section("The paper's tables", _paper(list(known.values()))))
    if runs:
        sections += _background(runs)
    write_text(path, page("taf-fast: " + ", ".join(names), sections))


def _comparison(runs: list[RunRecord]) -> Iterator[Section]:
    yield Section("Runs and results", _summary(runs))
    yield Section("Loss", _losses(runs))
    yield Section("Classes", _classes(runs))
    yield Section("Attention", _strips(runs) + _attention(runs))
    yield Section("Robustness", _robustness(runs))


def _background(runs: list[RunRecord]) -> Iterator[Section]:
    yield Section("Clips left out", _quarantine(runs))
    yield Section("Configuration", _configuration(runs))
    yield Section("Environment", _environment(runs))


def _lacking(runs: list[RunRecord], attribute: str, reason: str) -> str:
    """A sentence for every run without the attribute."""
    return "".join(sentence(f"{run.name} {reason}.") for run in runs if not getattr(run, attribute))


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _summary(runs: list[RunRecord]) -> str:
    header = ["run", "augmentation", "data", "model", "frames", "size", "epochs", "started from"]
    described = table("What was run", header, [_described(run) for run in runs])
    base = next((run for run in runs if run.result), None)
    header = ["run", "top-1 %", "difference", "top-5 %", "loss", "attacked %", "s / step"]
    rows = [_scored(run, base) for run in runs]
    note = ""
    if len(runs) == 1:
        header, *rows = ([*cells[:2], *cells[3:]] for cells in (header, *rows))
    elif base is not None:
        note = (
            f"Differences in top-1 are points compared with {base.name}; ± is half of their 95 % confidence "
            "interval over the clips, which leaves out what another seed would change."
        )
    scores = table("Scores on the validation clips", header, rows, note)
    return described + scores + _lacking(runs, "result", "is unfinished: it has no scores or no weights yet")


def _described(run: RunRecord) -> list[str]:
    config = run.config
    done = sum("val_loss" in line for line in run.metrics)
    return [
        run.name,
        _AUGMENTATIONS.get(config.augment, config.augment),
        f"{config.dataset}, {config.data}" if config.dataset else str(config.data),
        config.model,
        str(config.num_segments),
        f"{config.size} x {config.size}",
        str(config.epochs) if run.result else f"{done} of {config.epochs}",
        "random weights" if config.checkpoint is None else str(config.checkpoint),
    ]


def _scored(run: RunRecord, base: RunRecord | None) -> list[str]:
    result = run.result
    if not result or base is None:
        return [f"{run.name} (unfinished)", *[""] * 6]
    return [
        run.name,
        _percent(result["top1"]),
        "" if run is base else _difference(base, run),
        _percent(result["top5"]),
        f"{result['val_loss']:.4f}",
        _percent(result["attacked_share"]),
        f"{result['seconds_per_step']:.3f}",
    ]


def _difference(base: RunRecord, run: RunRecord) -> str:
    points = 100 * (run.result["top1"] - base.result["top1"])
    same = {(p.id, p.label) for p in base.predictions} == {(p.id, p.label) for p in run.predictions}
    return difference(points, paired_half_interval(base.predictions, run.predictions) if same else None)


def _losses(runs: list[RunRecord]) -> str:
    rows, missing = [], ""
    for run in runs:
        try:
            rows += loss_rows({run.name: run.folder})
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
    drawn = picture(partial(curves_figure, rows), "Training and validation loss over the epochs of every run")
    return drawn + missing + details("Every epoch", numbers)


def _classes(runs: list[RunRecord]) -> str:
    first, *others = runs
    if not others:
        return _class_scores(first)
    return "".join(heading(f"{run.name} against {first.name}") + _changes(first, run) for run in others)


def _class_scores(run: RunRecord) -> str:
    """The confusion matrix and the scores of every class of one run."""
    if not (run.predictions and run.classes):
        return sentence(f"{run.name} has no predictions or no weights.")
    beyond = next(
        (p for p in run.predictions if not {p.label, p.predicted} <= set(range(len(run.classes)))), None
    )
    if beyond is not None:
        return sentence(f"The predictions of {run.name} are of other classes than its weights: {beyond.id}.")
    rows = class_scores(run.predictions, run.classes)
    matrix = confusion_matrix(run.predictions, len(run.classes))
    cells = [
        [
            *(row["class"], str(row["clips"])),
            *("" if row[name] is None else _percent(row[name]) for name in ("top1", "top5", "precision")),
            f"{row['mistaken_for']} ({row['mistaken']})" if row["mistaken"] else "",
        ]
        for row in rows
    ]
    header = ["class", "clips", "top-1 %", "top-5 %", "precision %", "most often mistaken for (clips)"]
    mean = sentence(f"Mean class accuracy of {run.name}: {_percent(mean_class_accuracy(rows))} %.")
    alt = f"Confusion matrix of {run.name}: true classes in rows, predicted ones in columns"
    drawn = picture(partial(confusion_figure, matrix, run.classes), alt)
    return mean + drawn + details(f"Every class of {run.name}", table("Scores of every class", header, cells))


def _changes(before: RunRecord, after: RunRecord) -> str:
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
            *(_percent(row["before"]), _percent(row["after"])),
            difference(row["difference_points"], row["difference_points_ci95"]),
        ]
        for row in rows
    ]
    header = ["class", "", "clips", f"{before.name} %", f"{after.name} %", "difference"]
    note = "Differences in points, ± half of their 95 % confidence intervals over the clips."
    numbers = table("Top-1 of every class", header, cells, note)
    alt = f"Difference in top-1 of every class from {before.name} to {after.name}"
    drawn = picture(partial(classes_figure, rows), alt)
    return sentence(f"{class_summary(rows)}.") + drawn + details("Every class", numbers)


def _strips(runs: list[RunRecord]) -> str:
    finished = [run for run in runs if run.folder.weights.exists()]
    try:
        if not finished:
            raise RunError("no run has weights yet")
        strips = attended_clips(finished, count=2)
    except (RunError, DataError, CheckpointError) as error:
        return sentence(f"No pictures of attention: {error}.")
    alt = "Frames of the clip, and the attention of {} laid over them"
    names = ", ".join(run.name for run in finished)
    return "".join(
        heading(f"Clip {strip.id}: {strip.label}")
        + picture(partial(strips_figure, [strip], titled=False), alt.format(names), "jpg")
        for strip in strips
    )


def _labels(run: RunRecord, measured: dict[str, list[dict]]) -> Iterator[tuple[str, list[dict]]]:
    """The rows of each checkpoint in a CSV of a run, each under its own label."""
    for checkpoint, rows in measured.items():
        yield run.name if len(measured) == 1 else f"{run.name}: {checkpoint}", rows


def _attention(runs: list[RunRecord]) -> str:
    rows = []
    for label, measured in (pair for run in runs for pair in _labels(run, run.attention)):
        means = attention_summary(measured).values()
        counts = (len(measured), without_attention(measured))
        rows.append([label, *map(str, counts), *(f"{mean:.4f}" for mean in means)])
    note = "Means over clips. Evenly spread attention has an entropy of 1, and so do clips without any."
    header = ["run", "clips", "without attention", "entropy", "share of the top frame"]
    measures = table("Spread of attention over the frames", header, rows, note)
    return measures + _lacking(runs, "attention", f"has no {runs[0].folder.attention.name}")


def _robustness(runs: list[RunRecord]) -> str:
    missing = _lacking(runs, "robustness", f"has no {runs[0].folder.robustness.name}")
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
        "For every corruption, the mean over its severities.",
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
        header, cells = shown_table(rows)
    except (OSError, LookupError, ValueError, TypeError) as error:
        raise RunError(f"{path} is damaged: {error!r}") from None
    if not rows:
        return sentence("No run of the sweep has finished yet.")
    return table("Arms", header, cells, f"Means over seeds. {SPREAD}")


def _paper(runs: list[RunRecord]) -> str:
    intro = sentence(
        "The paper's numbers, and ours from runs with its data, model and settings. Runs that differ in "
        "their seed alone count as their mean; runs that differ in more give several values, each with its "
        "difference to the paper in points. Where ours is empty, nothing was measured."
    )
    tables = paper_tables(runs)
    filled = [shown for shown in tables if any(itertools.chain(*shown.ours))]
    others = "".join(_paper_table(shown) for shown in tables if shown not in filled)
    others += "" if filled else "".join(map(sentence, footnotes()))
    folded = details("The paper's tables that no run here fills", others) if others else ""
    if not filled:
        return sentence("No run here has the data and the settings of one of the paper's numbers.") + folded
    return intro + "".join(map(_paper_table, filled)) + "".join(map(sentence, footnotes())) + folded


def _paper_table(shown: PaperTable) -> str:
    groups = [("", len(shown.keys)), *((column, 2) for column in shown.columns)]
    header = [*shown.keys, *["paper", "ours"] * len(shown.columns)]
    rows = []
    for labels, paper, ours in zip(shown.labels, shown.paper, shown.ours, strict=True):
        pairs = [
            (f"{number:.1f}", " / ".join(_ours(value, number) for value in measured))
            for number, measured in zip(paper, ours, strict=True)
        ]
        rows.append([*labels, *itertools.chain(*pairs)])
    return table(shown.title, header, rows, shown.note, groups) + "".join(map(sentence, shown.footnotes))


def _ours(measured: Measured, paper: float) -> str:
    """The number, a difference with its interval, and in brackets its difference to the paper's."""
    runs = f", {measured.runs} runs" if measured.runs > 1 else ""
    shown = difference(measured.mean, measured.half) if measured.is_difference else f"{measured.mean:.1f}"
    return f"{shown} ({difference(measured.mean - paper, None)}{runs})"


def _quarantine(runs: list[RunRecord]) -> str:
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
            notes += sentence(
                f"{run.name} left out {len(found)} clips; its {run.folder.quarantine.name} has them all."
            )
    return table("Clips that could not be used", ["run", "split", "clip", "reason"], rows) + notes


def _configuration(runs: list[RunRecord]) -> str:
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


def _environment(runs: list[RunRecord]) -> str:
    known = [run for run in runs if run.environment]
    names = list(dict.fromkeys(name for run in known for name in run.environment))
    rows = [[name, *(str(run.environment.get(name, "")) for run in known)] for name in names]
    missing = _lacking(runs, "environment", f"has no {runs[0].folder.environment.name}")
    return table("Versions", ["", *(run.name for run in known)], rows) + missing
