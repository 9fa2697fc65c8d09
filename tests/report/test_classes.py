"""Changes of classes against a literal loop over predictions, and the bars drawn from them."""

import csv
import dataclasses
import random

import numpy as np
import pytest
import scipy.stats
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from taf_fast.data import read_ssv2
from taf_fast.errors import RunError
from taf_fast.measure.evaluate import Prediction, read_predictions, write_predictions
from taf_fast.report.classes import class_rows, class_summary, classes_figure, paired_half_interval

LONG_TERM = {"Moving something to the right and back again", "Moving something to the left and back again"}


def read(path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def predictions(rng: random.Random, labels: list[int], classes: int) -> list[Prediction]:
    found = []
    for i, label in enumerate(labels):
        place = rng.randrange(3)
        predicted = label if place == 0 else (label + 1) % classes
        found.append(Prediction(f"clip {i}", label, predicted, place, rng.random()))
    rng.shuffle(found)
    return found


@pytest.fixture
def compared(seed):
    """Names of 12 classes, the long-term ones, and predictions before and after of 90 clips, none of which is
    of class 5."""
    rng = random.Random(seed)
    classes = tuple(f"class {i}" for i in range(12))
    labels = [rng.choice([i for i in range(12) if i != 5]) for _ in range(90)]
    return classes, {"class 2", "class 7", "class 11"}, *(predictions(rng, labels, 12) for _ in range(2))


def test_rows_against_a_loop(compared):
    classes, long_term, before, after = compared
    rows = class_rows(classes, before, after, long_term)
    expected = []
    for index, name in enumerate(classes):
        first = {p.id: p.predicted == p.label for p in before if p.label == index}
        second = {p.id: p.predicted == p.label for p in after if p.label == index}
        if first:
            shares = [sum(found.values()) / len(found) for found in (first, second)]
            changes = [100 * (second[id] - first[id]) for id in first]
            half = None
            if len(set(changes)) > 1:
                half = scipy.stats.t.interval(0.95, len(changes) - 1, 0, scipy.stats.sem(changes))[1]
            expected.append((name, len(first), *shares, np.mean(changes), half, name in long_term))
    assert "class 5" not in {row[0] for row in expected}
    assert sum(row["clips"] for row in rows) == 90
    found = {row["class"]: row for row in rows}
    assert len(found) == len(rows) == len(expected)
    for values in expected:
        row = found[values[0]]
        names = [
            "class",
            "clips",
            "before",
            "after",
            "difference_points",
            "difference_points_ci95",
            "long_term",
        ]
        assert list(row) == [*names, "place"]
        for name, value in zip(names, values, strict=True):
            assert row[name] == (pytest.approx(value) if isinstance(value, float) else value)
    changes = [row["difference_points"] for row in rows]
    assert changes == sorted(changes, reverse=True)
    assert [row["place"] for row in rows] == list(range(1, len(rows) + 1))
    for one, other in zip(rows, rows[1:], strict=False):
        if one["difference_points"] == other["difference_points"]:
            assert classes.index(one["class"]) < classes.index(other["class"])


def test_summary(compared):
    classes, long_term, before, after = compared
    rows = class_rows(classes, before, after, long_term)
    sentences = class_summary(rows).split("; ")
    for sentence, name, kind in zip(sentences, ("long-term", "other"), (True, False), strict=True):
        group = [100 * (row["after"] - row["before"]) for row in rows if (row["class"] in long_term) == kind]
        improved = len([change for change in group if change > 1e-9])
        half = scipy.stats.t.interval(0.95, len(group) - 1, 0, scipy.stats.sem(group))[1]
        start = f"{improved} of {len(group)} {name} classes improved, mean difference "
        assert sentence.startswith(start) and sentence.endswith(" points")
        shown = sentence.removeprefix(start).removesuffix(" points").split(" ± ")
        assert [float(number) for number in shown] == pytest.approx([np.mean(group), half], abs=0.051)
    alone = class_summary(class_rows(classes, before, after, ()))
    assert " of 11 classes improved, mean difference " in alone and ";" not in alone


def test_an_interval_needs_differences_that_differ():
    """Two clips that both became right say nothing of how much clips differ."""
    before, after = (
        [
            Prediction(name, 0, 0 if place == 0 else 1, place, 0.5)
            for name, place in zip("abcd", places, strict=True)
        ]
        for places in ((1, 1, 0, 2), (0, 0, 0, 1))
    )
    assert paired_half_interval(before[:2], after[:2]) is None
    assert paired_half_interval(before[:1], after[:1]) is None
    # 100, 100, 0, 0: their deviation is 57.735, and t with 3 degrees of freedom is 3.1824.
    assert paired_half_interval(before, after[::-1]) == pytest.approx(3.18245 * 57.735 / 2, rel=1e-4)


@pytest.mark.parametrize("long_term", [True, False])
def test_bars_are_the_rows(compared, long_term):
    classes, names, before, after = compared
    rows = class_rows(classes, before, after, names if long_term else ())
    figure = classes_figure(rows)
    (axis,) = figure.axes
    bars = sorted(axis.patches, key=lambda bar: bar.get_y())
    (intervals,) = axis.collections
    lines = {round(line[0][1]): line[:, 0] for line in intervals.get_segments()}
    for place, row in enumerate(rows):
        if (half := row["difference_points_ci95"]) is None:
            assert place not in lines
        else:
            middle = row["difference_points"]
            assert lines[place] == pytest.approx([middle - half, middle + half])
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == [f"{row['class']}  {row['place']}" for row in rows]
    for place, (bar, row) in enumerate(zip(bars, rows, strict=True)):
        assert bar.get_y() + bar.get_height() / 2 == pytest.approx(place)
        assert bar.get_width() == pytest.approx(row["difference_points"])
    colours = {
        kind: {b.get_facecolor() for b, r in zip(bars, rows, strict=True) if r["long_term"] == kind}
        for kind in (True, False)
    }
    assert all(len(found) == 1 for found in colours.values() if found)
    assert not colours[True] & colours[False] and bool(colours[True]) == long_term
    top, bottom = axis.get_ylim()[::-1]
    assert top < -0.4 and bottom > len(rows) - 0.6  # the first row is the uppermost
    assert figure.get_suptitle().replace("\n", "; ") == class_summary(rows)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 8, 174])
def test_names_of_classes_can_be_read(seed, count):
    rng = random.Random(seed)
    classes = tuple(
        f"{i}: Pretending to put something on a surface, or on the next one" for i in range(count)
    )
    labels = list(range(count)) * 2
    before, after = (predictions(rng, labels, count) for _ in range(2))
    figure = classes_figure(class_rows(classes, before, after, classes[::3]))
    FigureCanvasAgg(figure).draw()
    renderer = figure.canvas.get_renderer()
    boxes = [label.get_window_extent(renderer) for label in figure.axes[0].get_yticklabels()]
    assert len(boxes) == count and figure.axes[0].get_window_extent(renderer).width > 200
    page = figure.bbox
    for box, below in zip(boxes, boxes[1:], strict=False):
        assert below.y1 <= box.y0
    title = figure.texts[0].get_window_extent(renderer)
    legend = figure.axes[0].get_legend().get_window_extent(renderer)
    assert not legend.overlaps(title) and not legend.overlaps(figure.axes[0].get_window_extent(renderer))
    assert all(box.x0 >= page.x0 and box.y0 >= page.y0 and box.y1 <= title.y0 for box in boxes)


def test_predictions_that_cannot_be_compared(compared):
    classes, _, before, after = compared
    for other in (before[1:], [dataclasses.replace(before[0], label=5), *before[1:]]):
        with pytest.raises(RunError, match="not of the same clips: .* such as 'clip "):
            class_rows(classes, other, after, ())
        with pytest.raises(RunError, match="not of the same clips"):
            class_rows(classes, after, other, ())
    with pytest.raises(RunError, match="no predictions to compare"):
        class_rows(classes, [], [], ())
    with pytest.raises(RunError, match="is of class .*, the data set has 3"):
        class_rows(classes[:3], before, after, ())
    with pytest.raises(RunError, match="long-term class 'another' is not one of the 12 classes"):
        class_rows(classes, before, after, ["class 1", "another"])


def test_classes_command(dataset, runs, tmp_path, output):
    out = tmp_path / "classes.png"
    printed = output("classes", *runs, "--data", dataset, "--out", out)
    names = read_ssv2(dataset, "validation").classes
    before, after = ({row["id"]: row for row in read(run / "predictions.csv")} for run in runs)
    rows = read(out.with_suffix(".csv"))
    assert len(rows) == 8
    for row in rows:
        label = str(names.index(row["class"]))
        ids = [id for id, values in before.items() if values["label"] == label]
        for column, found in (("before", before), ("after", after)):
            correct = [found[id]["predicted"] == label for id in ids]
            assert float(row[column]) == sum(correct) / len(ids)
        assert int(row["clips"]) == len(ids)
        assert row["long_term"] == str(row["class"] in LONG_TERM)
    assert "of 2 long-term classes improved" in printed and "of 6 other classes improved" in printed
    with Image.open(out) as image:
        image.load()
        assert image.width == 880 and image.height > 250


def test_classes_of_files_and_of_a_list(dataset, runs, tmp_path, output):
    """evaluate writes the same predictions as the run; FILE lists the long-term classes."""
    csv_file, out = tmp_path / "before.csv", tmp_path / "classes.png"
    weights = runs[0] / "model.safetensors"
    output(
        "evaluate", "--data", dataset, "--checkpoint", weights, "--predictions", csv_file, "--device", "cpu"
    )
    for row, own in zip(read(csv_file), read(runs[0] / "predictions.csv"), strict=True):
        for number in ("loss", "score"):
            assert float(row.pop(number)) == pytest.approx(float(own.pop(number)), rel=1e-3)
        assert row == own
    names = read_ssv2(dataset, "validation").classes
    chosen = tmp_path / "long_term.txt"
    chosen.write_text(f"{names[1]}\n\n  {names[4]}  \n{names[6]}")
    for arguments, expected in (
        (["--long-term", chosen], {names[1], names[4], names[6]}),
        ([], LONG_TERM),
    ):
        output("classes", csv_file, runs[1], "--data", dataset, "--out", out, *arguments)
        rows = read(out.with_suffix(".csv"))
        assert {row["class"] for row in rows if row["long_term"] == "True"} == expected


def test_classes_names_what_it_cannot_do(dataset, runs, tmp_path, error):
    def of(*arguments, out=tmp_path / "classes.png"):
        return error("classes", *arguments, "--data", dataset, "--out", out)

    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"{empty / 'predictions.csv'} is not a file of predictions" in of(runs[0], empty)
    assert "is not a file of predictions" in of(runs[0] / "config.yaml", runs[1])
    fewer = tmp_path / "fewer.csv"
    write_predictions(fewer, read_predictions(runs[0] / "predictions.csv")[1:], ["a class"] * 8)
    assert "not of the same clips: 1 are in one only" in of(fewer, runs[1])
    assert "must be a .png file" in of(*runs, out=tmp_path / "classes.csv")
    names = tmp_path / "names.txt"
    assert "names.txt cannot be read as a text file" in of(*runs, "--long-term", names)
    names.write_bytes(b"\xff\xfe")
    assert "names.txt cannot be read as a text file" in of(*runs, "--long-term", names)
    names.write_text("Folding something\n")
    assert "'Folding something' is not one of the 8 classes" in of(*runs, "--long-term", names)
    assert not (tmp_path / "classes.png").exists()


def test_evaluate_names_a_folder_that_does_not_exist(tmp_path, error):
    for option in ("--out", "--predictions"):
        path = tmp_path / "nowhere" / "file"
        message = error("evaluate", "--data", tmp_path, "--checkpoint", tmp_path / "w", option, path)
        assert message == f"error: {path} cannot be written: there is no folder {path.parent}\n"
