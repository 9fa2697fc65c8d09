"""The differences between two evaluations, class by class (the paper's Fig. 4)."""

from collections.abc import Collection
from statistics import fmean

from matplotlib.figure import Figure

from taf_fast.errors import RunError
from taf_fast.measure.evaluate import Prediction
from taf_fast.report.figures import COLOURS, drawable, plain_text, use_fonts
from taf_fast.sweep.stats import difference, half_interval


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
        A row for every class that has clips: ``class``, ``clips`` (number), ``before`` and ``after`` (top-1,
        fractions in [0,1]), ``difference_points`` (of 100 times these), ``difference_points_ci95`` (half of
        its 95 % confidence interval, see :func:`paired_half_interval`), ``long_term`` (bool) and ``place``,
        from 1, by which Fig. 4 and Table 5 number the classes. Classes with the same difference stay in the
        order of ``classes``.

    Raises:
        RunError: the predictions are of different clips or other classes, there are none, or a name in
            ``long_term`` is not a class.
    """
    for name in long_term:
        if name not in classes:
            raise RunError(
                f"long-term class {name!r} is not one of the {len(classes)} classes of the data set"
            )
    _require_same_clips(before, after)
    for prediction in before:
        if not 0 <= prediction.label < len(classes):
            raise RunError(
                f"clip {prediction.id!r} is of class {prediction.label}, the data set has {len(classes)}"
            )
    rows: list[dict] = []
    for label, name in enumerate(classes):
        first, second = ([p for p in predictions if p.label == label] for predictions in (before, after))
        if not first:
            continue
        clips, right, now_right = len(first), *(sum(p.place == 0 for p in found) for found in (first, second))
        rows.append(
            {
                "class": name,
                "clips": clips,
                "before": right / clips,
                "after": now_right / clips,
                "difference_points": 100 * (now_right - right) / clips,
                "difference_points_ci95": paired_half_interval(first, second),
                "long_term": name in long_term,
            }
        )
    rows.sort(key=lambda row: -row["difference_points"])
    return [row | {"place": place} for place, row in enumerate(rows, start=1)]


def paired_half_interval(before: list[Prediction], after: list[Prediction]) -> float | None:
    """Half of the 95 % confidence interval of the difference in top-1, in points, over the clips.

    It is that of the mean over the clips of 1 for one that became right, -1 for one that became wrong and 0
    for the others, by Student's t. It tells how much the choice of clips matters, not that of a seed. None
    if no difference is unlike another, which leaves nothing to estimate the interval by.

    Args:
        before, after: predictions of the same clips.
    """
    right = {p.id: p.place == 0 for p in after}
    changes = [100.0 * (right[p.id] - (p.place == 0)) for p in before]
    return half_interval(changes) if len(set(changes)) > 1 else None


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
    """A sentence about the rows of :func:`class_rows`.

    It says how many long-term classes improved, if there are any, and how many others, with the mean
    difference in points of top-1 and half of its 95 % confidence interval over the classes.
    """
    return "; ".join(
        f"{sum(points > 0 for points in found)} of {len(found)} {name} improved, "
        f"mean difference {difference(fmean(found), half_interval(found))} points"
        for name, found in (
            (name, [row["difference_points"] for row in group]) for name, group in _groups(rows).items()
        )
    )


def _groups(rows: list[dict]) -> dict[str, list[dict]]:
    long_term, others = ([row for row in rows if row["long_term"] == kind] for kind in (True, False))
    groups = {"long-term classes": long_term, "other classes" if long_term else "classes": others}
    return {name: group for name, group in groups.items() if group}


@plain_text
def classes_figure(rows: list[dict]) -> Figure:
    """Draw the difference of every class as a bar, from the top in the order of :func:`class_rows`, with its
    95 % confidence interval."""
    use_fonts(row["class"] for row in rows)
    # High enough for the names, however many there are.
    figure = Figure(figsize=(8, 1.4 + 0.16 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for name, group in _groups(rows).items():
        places = [rows.index(row) for row in group]
        colour = COLOURS[1] if group[0]["long_term"] else COLOURS[0]
        axis.barh(places, [row["difference_points"] for row in group], color=colour, label=name)
    between = [(place, row) for place, row in enumerate(rows) if row["difference_points_ci95"] is not None]
    if between:
        axis.errorbar(
            [row["difference_points"] for _, row in between],
            [place for place, _ in between],
            xerr=[row["difference_points_ci95"] for _, row in between],
            fmt="none",
            ecolor="0.3",
            elinewidth=0.8,
            capsize=1.5,
            label="95 % interval over the clips",
        )
    # The paper's Fig. 4 has places instead of names.
    names = [f"{drawable(row['class'])}  {row['place']}" for row in rows]
    axis.set_yticks(range(len(rows)), names, fontsize=7)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    # An interval can go beyond what a difference can be.
    low, high = axis.get_xlim()
    axis.set_xlim(max(low, -105), min(high, 105))
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_xlabel("difference in top-1 in points", fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    # Above the bars, next to none of them.
    axis.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False)
    figure.suptitle(drawable(class_summary(rows).replace("; ", "\n")), fontsize=9)
    return figure
