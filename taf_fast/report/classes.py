"""What two evaluations differ in, class by class (the paper's Fig. 4)."""

from collections.abc import Collection
from statistics import fmean

from matplotlib.figure import Figure

from taf_fast.run.config import RunError
from taf_fast.run.evaluate import Prediction


def class_rows(
    classes: tuple[str, ...],
    before: list[Prediction],
    after: list[Prediction],
    long_term: Collection[str],
) -> list[dict]:
    """Top-1 of every class that has clips, before and after, largest gain first.

    Args:
        classes: their names by label.
        before, after: predictions of the same clips.
        long_term: names of the classes to tell from the others; may be empty.

    Returns:
        ``class``, ``clips``, ``before``, ``after`` (fractions of them), ``change`` (the difference) and
        ``long_term``. Classes of the same change stay in the order of ``classes``.

    Raises:
        RunError: predictions of different clips or of other classes, none at all, or a name in ``long_term``
            that is no class.
    """
    for name in long_term:
        if name not in classes:
            raise RunError(f"long-term class {name!r} is none of the {len(classes)} classes of the data set")
    _require_same_clips(before, after)
    clips, right_before, right_after = ([0] * len(classes) for _ in range(3))
    for counts, predictions in ((right_before, before), (right_after, after)):
        for prediction in predictions:
            if not 0 <= prediction.label < len(classes):
                raise RunError(
                    f"clip {prediction.id!r} is of class {prediction.label}, the data set has {len(classes)}"
                )
            counts[prediction.label] += prediction.place == 0
    for prediction in before:
        clips[prediction.label] += 1
    rows = [
        {
            "class": name,
            "clips": count,
            "before": correct / count,
            "after": now_correct / count,
            "change": (now_correct - correct) / count,
            "long_term": name in long_term,
        }
        for name, count, correct, now_correct in zip(classes, clips, right_before, right_after, strict=True)
        if count
    ]
    return sorted(rows, key=lambda row: -row["change"])


def _require_same_clips(before: list[Prediction], after: list[Prediction]) -> None:
    found, expected = ({(p.id, p.label) for p in predictions} for predictions in (after, before))
    if not expected:
        raise RunError("there are no predictions to compare")
    if different := sorted(found ^ expected):
        id, label = different[0]
        raise RunError(
            f"the predictions are not of the same clips: {len(different)} are in one only, "
            f"such as {id!r} of class {label}"
        )


def class_summary(rows: list[dict]) -> str:
    """How many classes of the rows of :func:`class_rows` improved, and the mean change in points of top-1: of
    long-term classes, if there are any, and of the others."""
    return "; ".join(
        f"{sum(row['change'] > 0 for row in group)} of {len(group)} {name} improved, "
        f"mean change {100 * fmean(row['change'] for row in group):+.1f} points"
        for name, group in _groups(rows).items()
    )


def _groups(rows: list[dict]) -> dict[str, list[dict]]:
    long_term, others = ([row for row in rows if row["long_term"] == kind] for kind in (True, False))
    groups = {"long-term classes": long_term, "other classes" if long_term else "classes": others}
    return {name: group for name, group in groups.items() if group}


def classes_figure(rows: list[dict]) -> Figure:
    """Bars of the change of every class, in the order of the rows of :func:`class_rows`, from the top."""
    # Enough for the names, whatever their number.
    figure = Figure(figsize=(8, 1.4 + 0.16 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for name, group in _groups(rows).items():
        places = [rows.index(row) for row in group]
        colour = "tab:orange" if group[0]["long_term"] else "tab:blue"
        axis.barh(places, [100 * row["change"] for row in group], color=colour, label=name)
    axis.set_yticks(range(len(rows)), [row["class"] for row in rows], fontsize=7)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_xlabel("change of top-1 in points", fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    axis.legend(fontsize=8)
    figure.suptitle(class_summary(rows).replace("; ", "\n"), fontsize=9)
    return figure
