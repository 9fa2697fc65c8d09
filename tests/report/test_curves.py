"""Losses by epoch against hand-written metrics and those of runs, and the lines drawn from them."""

import csv
import json

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from taf_fast.errors import RunError
from taf_fast.report.curves import curves_figure, loss_rows
from taf_fast.run.folder import RunFolder


def write(path, lines):
    folder = RunFolder(path)
    path.mkdir(exist_ok=True)
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def steps(epoch, first, losses):
    return [
        {"step": first + i, "epoch": epoch, "loss": 9.0, "clean_loss": loss, "adv_loss": 8.0}
        for i, loss in enumerate(losses)
    ]


def end(epoch, step, loss, top1=0.5):
    return {"step": step, "epoch": epoch, "val_top1": top1, "val_top5": 1.0, "val_loss": loss}


@pytest.fixture
def run(tmp_path):
    lines = [
        *steps(0, 1, [1.0, 2.0, 4.5]),
        end(0, 3, 3.0, 0.25),
        *steps(1, 4, [0.5, 0.75, 1.0]),
        end(1, 6, 2.0),
        *steps(2, 7, [0.1]),  # an epoch under way
    ]
    return write(tmp_path / "run", lines)


def test_rows_are_those_of_finished_epochs(run, tmp_path):
    other = write(tmp_path / "other", [*steps(0, 1, [0.5]), end(0, 1, 0.25, 1.0)])
    names = ("run", "epoch", "step", "train_loss", "val_loss", "val_top1")
    assert [tuple(row.items()) for row in loss_rows({"a": run, "b": other})] == [
        tuple(zip(names, values, strict=True))
        for values in (
            ("a", 1, 3, 2.5, 3.0, 0.25),
            ("a", 2, 6, 0.75, 2.0, 0.5),
            ("b", 1, 1, 0.5, 0.25, 1.0),
        )
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "has no finished epoch yet"),
        (steps(0, 1, [1.0, 2.0]), "has no finished epoch yet"),
        ([*steps(0, 1, [1.0]), end(0, 1, float("nan"))], "is damaged.*NaN is no number of JSON"),
        ([*steps(0, 1, [float("inf")]), end(0, 1, 1.0)], "is damaged.*Infinity is no number of JSON"),
        ([end(0, 1, 1.0)], "is damaged"),
        ([{"accuracy": 1}], "is damaged"),
        ([3], "is damaged"),
        ([*steps(0, 1, ["low"]), end(0, 1, 1.0)], "is damaged"),
        ([*steps(0, 1, [1.0]), end(0, 1, None)], "is damaged"),
    ],
)
def test_metrics_that_no_curve_can_be_drawn_of(tmp_path, lines, message):
    folder = write(tmp_path / "run", lines)
    with pytest.raises(RunError, match=message) as caught:
        loss_rows({"run": folder})
    assert str(folder.metrics) in str(caught.value)


def test_a_run_on_mixed_clips_has_no_loss_of_clean_ones(tmp_path):
    lines = [{"step": 1, "epoch": 0, "loss": 3.0}, {"step": 2, "epoch": 0, "loss": 2.0}, end(0, 2, 1.0)]
    (row,) = loss_rows({"run": write(tmp_path / "run", lines)})
    assert row["train_loss"] == 2.5


def test_files_that_are_no_metrics(tmp_path):
    with pytest.raises(RunError, match="does not exist, expected the metrics of a run"):
        loss_rows({"run": RunFolder(tmp_path)})
    for content in (b"no JSON\n", b"\xff\xfe\n"):
        (tmp_path / "metrics.jsonl").write_bytes(content)
        with pytest.raises(RunError, match="is damaged"):
            loss_rows({"run": RunFolder(tmp_path)})


def test_a_line_that_a_kill_cut_off_does_not_matter(run):
    rows = loss_rows({"run": run})
    with run.metrics.open("a") as file:
        file.write('{"step": 8, "ep')
    assert loss_rows({"run": run}) == rows


def test_lines_are_the_rows(run, tmp_path):
    other = write(tmp_path / "other", [*steps(0, 1, [0.5]), end(0, 1, 0.25)])
    rows = loss_rows({"a": run, "b": other})
    figure = curves_figure(rows)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
    assert [line.get_color() for line in legend.get_lines()] == [
        line.get_color() for line in figure.axes[0].lines
    ]
    for axis, column in zip(figure.axes, ("train_loss", "val_loss"), strict=True):
        for line, run in zip(axis.lines, "ab", strict=True):
            of_run = [row for row in rows if row["run"] == run]
            assert line.get_xdata().tolist() == [row["epoch"] for row in of_run]
            assert line.get_ydata().tolist() == [row[column] for row in of_run]


@pytest.mark.parametrize("count", [1, 9])
def test_the_legend_hides_no_line_and_no_two_lines_look_alike(run, count):
    rows = [row | {"run": f"run {n} of a long name"} for n in range(count) for row in loss_rows({"": run})]
    figure = curves_figure(rows)
    FigureCanvasAgg(figure).draw()
    renderer = figure.canvas.get_renderer()
    legend = figure.legends[0].get_window_extent(renderer)
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.x1
    for axis in figure.axes:
        assert not legend.overlaps(axis.get_tightbbox(renderer)) and axis.bbox.height > 200
        assert len({(line.get_color(), line.get_linestyle()) for line in axis.lines}) == count


def test_curves_command(runs, tmp_path, output):
    out = tmp_path / "curves.png"
    output("curves", *runs, "--out", out)
    with out.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["epoch"]) for row in rows] == [
        ("baseline", "1"),
        ("baseline", "2"),
        ("taf", "1"),
    ]
    for run, last in zip(runs, (rows[1], rows[2]), strict=True):
        result = json.loads((run / "result.json").read_text())["evaluation"]
        assert float(last["val_loss"]) == result["loss"] and float(last["val_top1"]) == result["top1"]
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses = [
            x["clean_loss"] for x in lines if x["epoch"] == int(last["epoch"]) - 1 and "clean_loss" in x
        ]
        assert len(losses) == 3 and float(last["train_loss"]) == pytest.approx(np.mean(losses))
        assert int(last["step"]) == lines[-1]["step"]
    with Image.open(out) as image:
        image.load()
        assert image.size == (990, 396)


def test_runs_of_the_same_name_are_told_apart(runs, tmp_path, output):
    for part in ("one", "two"):
        folder = tmp_path / part / "run"
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_bytes((runs[1] / "metrics.jsonl").read_bytes())
    output("curves", tmp_path / "one" / "run", tmp_path / "two" / "run", "--out", tmp_path / "curves.png")
    rows = (tmp_path / "curves.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["one/run", "two/run"]


def test_a_folder_without_metrics_is_named(tmp_path, error):
    message = error("curves", tmp_path, "--out", tmp_path / "curves.png")
    assert f"{tmp_path / 'metrics.jsonl'} does not exist" in message
    assert not list(tmp_path.iterdir())
