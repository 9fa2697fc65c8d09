"""Losses by epoch against metrics written by hand and those of runs, and the lines drawn of them."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from taf_fast.report.curves import curves_figure, loss_rows
from taf_fast.run.config import RunError


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def steps(epoch, first, losses):
    return [
        {"step": first + i, "epoch": epoch, "loss": 9.0, "clean_loss": loss, "adv_loss": 8.0}
        for i, loss in enumerate(losses)
    ]


def end(epoch, step, loss, top1=0.5):
    return {"step": step, "epoch": epoch, "val_top1": top1, "val_top5": 1.0, "val_loss": loss}


@pytest.fixture
def metrics(tmp_path):
    lines = [
        *steps(0, 1, [1.0, 2.0, 4.5]),
        end(0, 3, 3.0, 0.25),
        *steps(1, 4, [0.5, 0.75, 1.0]),
        end(1, 6, 2.0),
        *steps(2, 7, [0.1]),  # an epoch under way
    ]
    return write(tmp_path / "metrics.jsonl", lines)


def test_rows_are_those_of_finished_epochs(metrics, tmp_path):
    other = write(tmp_path / "other.jsonl", [*steps(0, 1, [0.5]), end(0, 1, 0.25, 1.0)])
    names = ("run", "epoch", "step", "train_loss", "val_loss", "val_top1")
    assert [tuple(row.items()) for row in loss_rows({"a": metrics, "b": other})] == [
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
        ([*steps(0, 1, [1.0]), end(0, 1, float("nan"))], "val_loss of epoch 1 is nan, expected it finite"),
        ([*steps(0, 1, [float("inf")]), end(0, 1, 1.0)], "train_loss of epoch 1 is inf, expected it finite"),
        ([end(0, 1, 1.0)], "is not the metrics.jsonl of a run"),
        ([{"accuracy": 1}], "is not the metrics.jsonl of a run"),
        ([3], "is not the metrics.jsonl of a run"),
        ([*steps(0, 1, ["low"]), end(0, 1, 1.0)], "is not the metrics.jsonl of a run"),
        ([*steps(0, 1, [1.0]), end(0, 1, None)], "is not the metrics.jsonl of a run"),
    ],
)
def test_metrics_that_no_curve_can_be_drawn_of(tmp_path, lines, message):
    path = write(tmp_path / "metrics.jsonl", lines)
    with pytest.raises(RunError, match=message) as caught:
        loss_rows({"run": path})
    assert str(path) in str(caught.value)


def test_a_run_on_mixed_clips_has_no_loss_of_clean_ones(tmp_path):
    lines = [{"step": 1, "epoch": 0, "loss": 3.0}, {"step": 2, "epoch": 0, "loss": 2.0}, end(0, 2, 1.0)]
    (row,) = loss_rows({"run": write(tmp_path / "metrics.jsonl", lines)})
    assert row["train_loss"] == 2.5


def test_files_that_are_no_metrics(tmp_path):
    with pytest.raises(RunError, match="does not exist, expected the metrics.jsonl of a run"):
        loss_rows({"run": tmp_path / "metrics.jsonl"})
    (tmp_path / "text").write_text("no JSON\n")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\n")
    for name in ("text", "bytes"):
        with pytest.raises(RunError, match="is not the metrics.jsonl of a run"):
            loss_rows({"run": tmp_path / name})


def test_a_line_that_a_kill_cut_off_does_not_matter(metrics):
    rows = loss_rows({"run": metrics})
    with metrics.open("a") as file:
        file.write('{"step": 8, "ep')
    assert loss_rows({"run": metrics}) == rows


def test_lines_are_the_rows(metrics, tmp_path):
    other = write(tmp_path / "other.jsonl", [*steps(0, 1, [0.5]), end(0, 1, 0.25)])
    rows = loss_rows({"a": metrics, "b": other})
    for axis, column in zip(curves_figure(rows).axes, ("train_loss", "val_loss"), strict=True):
        assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a", "b"]
        for line, run in zip(axis.lines, "ab", strict=True):
            of_run = [row for row in rows if row["run"] == run]
            assert line.get_xdata().tolist() == [row["epoch"] for row in of_run]
            assert line.get_ydata().tolist() == [row[column] for row in of_run]


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
        assert image.size == (990, 374)


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
