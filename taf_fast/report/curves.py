"""Training and validation loss over the epochs of runs (the paper's Fig. 5)."""

import math
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

from taf_fast.run.config import RunError
from taf_fast.run.metrics import read_metrics


def loss_rows(runs: dict[str, Path]) -> list[dict]:
    """A row for every finished epoch of every run.

    Args:
        runs: name -> the run's ``metrics.jsonl``.

    Returns:
        ``run``, ``epoch`` (from 1), ``step`` at its end, ``train_loss`` (the mean over its steps of the
        cross-entropy of the clean clips, or of the mixed ones in a run that trains on those alone),
        ``val_loss`` and ``val_top1`` (a fraction) at its end.

    Raises:
        RunError: no such file, one that is not of a run, a run without a finished epoch, or a loss that is
            not finite.
    """
    return [{"run": name} | row for name, path in runs.items() for row in _epochs(path)]


def _epochs(path: Path) -> list[dict]:
    if not path.is_file():
        raise RunError(f"{path} does not exist, expected the metrics.jsonl of a run")
    rows, losses = [], []
    try:
        for line in read_metrics(path):
            if "val_loss" not in line:
                losses.append(line.get("clean_loss", line["loss"]))
                continue
            rows.append(
                {
                    "epoch": line["epoch"] + 1,
                    "step": line["step"],
                    "train_loss": fmean(losses),
                    "val_loss": float(line["val_loss"]),
                    "val_top1": line["val_top1"],
                }
            )
            losses = []
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} is not the metrics.jsonl of a run: {error!r}") from None
    if not rows:
        raise RunError(f"{path} has no finished epoch yet")
    for row in rows:
        for name in ("train_loss", "val_loss"):
            if not math.isfinite(row[name]):
                raise RunError(f"{path}: {name} of epoch {row['epoch']} is {row[name]}, expected it finite")
    return rows


def curves_figure(rows: list[dict]) -> Figure:
    """The training loss (left) and the validation loss (right) of the rows of :func:`loss_rows`."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axis, column, title in zip(
        figure.subplots(1, 2),
        ("train_loss", "val_loss"),
        ("training loss", "validation loss"),
        strict=True,
    ):
        for run in dict.fromkeys(row["run"] for row in rows):
            points = [(row["epoch"], row[column]) for row in rows if row["run"] == run]
            axis.plot(*zip(*points, strict=True), label=run, linewidth=1, marker="o", markersize=3)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("epoch")
        axis.set_ylabel("cross-entropy")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(fontsize=8)
    return figure
