"""How a model does on each class: accuracy, precision, and what classes are mistaken for."""

from collections.abc import Sequence
from statistics import fmean

import numpy as np

from taf_fast.measure.evaluate import Prediction


def confusion_matrix(predictions: Sequence[Prediction], classes: int) -> np.ndarray:
    """Count the videos of every class by the class that was predicted.

    Returns:
        int64 [classes,classes]: the row is the true class, the column the predicted one.
    """
    matrix = np.zeros((classes, classes), np.int64)
    for prediction in predictions:
        matrix[prediction.label, prediction.predicted] += 1
    return matrix


def class_scores(predictions: Sequence[Prediction], classes: Sequence[str]) -> list[dict]:
    """The scores of every class.

    Args:
        classes: their names by label.

    Returns:
        A row for every class, by label: ``label``, ``class``, ``clips`` (videos of the class), ``top1``
        (their share with the right prediction, which is the recall), ``top5``, ``precision`` (share of right
        ones among the videos that the class was predicted for), ``mistaken_for`` (the wrong class that was
        predicted most often for its videos, of several the first; "" for none) and ``mistaken`` (how often).
        Fractions are in [0,1]; None where there is no video to take a share of.
    """
    matrix = confusion_matrix(predictions, len(classes))
    in_five = np.bincount([p.label for p in predictions if p.place < 5], minlength=len(classes))
    rows = []
    for label, name in enumerate(classes):
        right, clips, predicted = matrix[label, label], matrix[label].sum(), matrix[:, label].sum()
        wrong = np.delete(matrix[label], label)
        most = int(wrong.argmax()) if wrong.any() else None
        rows.append(
            {
                "label": label,
                "class": name,
                "clips": int(clips),
                "top1": float(right / clips) if clips else None,
                "top5": float(in_five[label] / clips) if clips else None,
                "precision": float(right / predicted) if predicted else None,
                "mistaken_for": "" if most is None else classes[most + (most >= label)],
                "mistaken": 0 if most is None else int(wrong[most]),
            }
        )
    return rows


def mean_class_accuracy(rows: Sequence[dict]) -> float:
    """The mean of ``top1`` over the classes of :func:`class_scores` that have videos, at least one."""
    return fmean(row["top1"] for row in rows if row["clips"])
