"""Training and validation loss over the steps of runs."""

from pathlib import Path

from matplotlib.figure import Figure

from taf_fast.run.metrics import read_metrics


def draw_loss_curves(path: Path, runs: dict[str, Path]) -> None:
    """Write a PNG with the clean training loss (left) and the validation loss (right) of runs.

    Args:
        runs: name -> the run's ``metrics.jsonl``.
    """
    figure = Figure(figsize=(9, 3.4))
    left, right = figure.subplots(1, 2)
    for name, metrics in runs.items():
        lines = read_metrics(metrics)
        train = [(line["step"], line["clean_loss"]) for line in lines if "clean_loss" in line]
        validation = [(line["step"], line["val_loss"]) for line in lines if "val_loss" in line]
        left.plot(*zip(*train, strict=True), label=name, linewidth=1)
        if validation:
            right.plot(*zip(*validation, strict=True), label=name, marker="o", markersize=3)
    for axis, title in ((left, "training loss, clean clips"), (right, "validation loss")):
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.set_ylabel("cross-entropy")
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110, format="png")
