"""Training and validation loss over the epochs of runs (the paper's Fig. 5)."""

from statistics import fmean

from matplotlib.figure import Figure

from taf_fast.errors import RunError
from taf_fast.report.figures import drawable, plain_text, use_fonts
from taf_fast.run.folder import RunFolder


def loss_rows(runs: dict[str, RunFolder]) -> list[dict]:
    """A row for every finished epoch of every run.

    Args:
        runs: by name.

    Returns:
        ``run``, ``epoch`` (from 1), ``step`` at its end, ``train_loss`` (the mean over the epoch's steps of
        the cross-entropy of the clean clips, or of the mixed ones in a run that trains on those alone),
        ``val_loss`` and ``val_top1`` (a fraction in [0,1]) at its end.

    Raises:
        RunError: a run has no metrics, damaged ones such as a loss that is not finite, or no finished
            epoch.
    """
    return [{"run": name} | row for name, folder in runs.items() for row in _epochs(folder)]


def _epochs(folder: RunFolder) -> list[dict]:
    path = folder.metrics
    if not path.is_file():
        raise RunError(f"{path} does not exist, expected the metrics of a run")
    rows, losses = [], []
    lines = folder.read_metrics()
    try:
        for line in lines:
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
    except (KeyError, ValueError) as error:
        raise RunError(f"{path} is damaged, expected the metrics of a run: {error!r}") from None
    if not rows:
        raise RunError(f"{path} has no finished epoch yet")
    return rows


@plain_text
def curves_figure(rows: list[dict]) -> Figure:
    """Draw the rows of :func:`loss_rows`: training loss on the left, validation loss on the right."""
    runs = list(dict.fromkeys(row["run"] for row in rows))
    use_fonts(runs)
    labels = [drawable(run) for run in runs]
    width = 9.0
    across = max(1, int(width / (0.6 + 0.08 * max(map(len, labels)))))
    figure = Figure(figsize=(width, 3.4 + 0.2 * -(-len(runs) // across)), layout="constrained")
    for axis, column, title in zip(
        figure.subplots(1, 2),
        ("train_loss", "val_loss"),
        ("training loss", "validation loss"),
        strict=True,
    ):
        for run in runs:
            points = [(row["epoch"], row[column]) for row in rows if row["run"] == run]
            axis.plot(*zip(*points, strict=True), linewidth=1, marker="o", markersize=3)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("epoch")
        axis.set_ylabel("cross-entropy")
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(axis.lines, labels, fontsize=8, loc="outside lower center", ncols=across, frameon=False)
    return figure
