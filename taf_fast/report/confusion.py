"""The confusion matrix of a model: what every class is taken for."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from taf_fast.report.figures import MAP, drawable, plain_text, use_fonts

# Above this many classes there is no room for a number in every cell.
_NUMBERED = 30


def confusion_rows(matrix: np.ndarray, classes: Sequence[str]) -> list[dict]:
    """The rows of :func:`taf_fast.measure.by_class.confusion_matrix` for a CSV.

    Returns:
        A row for every true class: ``label`` and ``class``, then the number of its videos for every
        predicted class, whose column is named by its label and its name: "3: Folding something".
    """
    names = [f"{label}: {name}" for label, name in enumerate(classes)]
    return [
        {"label": label, "class": name} | dict(zip(names, counts.tolist(), strict=True))
        for label, (name, counts) in enumerate(zip(classes, matrix, strict=True))
    ]


@plain_text
def confusion_figure(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw :func:`taf_fast.measure.by_class.confusion_matrix`: the share of every true class's videos.

    Cells without a video are white. Up to 30 classes, cells show the number of videos.
    """
    use_fonts(classes)
    names = [drawable(name) for name in classes]
    side = 2.5 + (0.32 if len(names) <= _NUMBERED else 0.17) * len(names)
    margin = 0.055 * max(map(len, names))
    figure = Figure(figsize=(side + margin + 1, side + margin), layout="constrained")
    axis = figure.subplots()
    clips = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, clips, out=np.full(matrix.shape, np.nan), where=matrix > 0)
    image = axis.imshow(shares, cmap=MAP, vmin=0, vmax=1)
    if len(names) <= _NUMBERED:
        for row, column in zip(*matrix.nonzero(), strict=True):
            colour = "black" if shares[row, column] > 0.5 else "white"
            count = str(matrix[row, column])
            axis.text(column, row, count, ha="center", va="center", color=colour, fontsize=7)
    axis.set_xticks(range(len(names)), names, fontsize=7, rotation=90)
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.set_xlabel("predicted class", fontsize=9)
    axis.set_ylabel("true class", fontsize=9)
    bar = figure.colorbar(image, ax=axis, shrink=0.8, aspect=30)
    bar.set_label("share of the true class's videos", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure
