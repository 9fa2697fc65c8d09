"""taf-fast predict and taf_fast.predict: the classes of clips without labels."""

import csv
import json
import shutil

import pytest
import torch
from run_command import error_of, output_of

import taf_fast
from taf_fast import models
from taf_fast.errors import DataError, RunError
from taf_fast.measure.evaluate import read_predictions
from taf_fast.run.checkpoint import read_info


@pytest.fixture(scope="module")
def checkpoint(runs):
    return runs[0] / "model.safetensors"


@pytest.fixture(scope="module")
def videos(dataset):
    return next(path for path in dataset.iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def known(runs):
    """Of the validation videos, by file name: the predicted class."""
    return {p.id: p.predicted for p in read_predictions(runs[0] / "predictions.csv")}


def test_equals_the_predictions_of_the_run(checkpoint, videos, known, tmp_path, capsys, monkeypatch):
    classes = read_info(checkpoint).classes
    files = [videos / f"{name}.webm" for name in known]
    out = tmp_path / "found.csv"
    printed = output_of(
        capsys,
        monkeypatch,
        "predict",
        *files,
        "--checkpoint",
        checkpoint,
        "--top",
        3,
        "--out",
        out,
        "--device",
        "cpu",
    )
    rows = list(csv.DictReader(out.open()))
    assert len(rows) == 3 * len(files)
    for file, label in zip(files, known.values(), strict=True):
        own = [row for row in rows if row["clip"] == str(file)]
        assert own[0]["class"] == classes[label] and [row["place"] for row in own] == ["1", "2", "3"]
        probabilities = [float(row["probability"]) for row in own]
        assert probabilities == sorted(probabilities, reverse=True) and 0 < sum(probabilities) <= 1
        assert str(file) in printed
    assert printed.count("%") == len(rows)


def test_in_python(checkpoint, videos, known):
    info = read_info(checkpoint)
    found = taf_fast.predict(checkpoint, videos, top=100, batch_size=5)
    assert not found.left_out and len(found.guesses) == len(list(videos.iterdir()))
    for guess in found.guesses:
        assert sorted(guess.classes) == sorted(info.classes)
        assert sum(guess.probabilities) == pytest.approx(1)
    model = taf_fast.models.build(info.model, len(info.classes), info.num_segments, **info.options)
    taf_fast.models.load(model, checkpoint)
    one = videos / f"{next(iter(known))}.webm"
    (by_model,) = taf_fast.predict(model.train(), one, size=info.size, num_segments=info.num_segments).guesses
    assert model.training and by_model.classes[0] == str(known[one.stem])
    (by_file,) = taf_fast.predict(checkpoint, one).guesses
    torch.testing.assert_close(by_model.probabilities, by_file.probabilities)


def test_files_of_other_kinds(checkpoint, videos, tmp_path, capsys, monkeypatch):
    good = sorted(videos.iterdir())[0]
    folder = tmp_path / "a" / "b [x] %d"
    folder.mkdir(parents=True)
    shutil.copy(good, folder / "clip.webm")
    shutil.copy(good, tmp_path / "without a suffix")
    (tmp_path / "a" / "notes.txt").write_text("none")
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    out = tmp_path / "found.json"
    paths = [tmp_path / name for name in ("a", "without a suffix", "bad.mp4")]
    printed = output_of(capsys, monkeypatch, "predict", *paths, "--checkpoint", checkpoint, "--out", out)
    content = json.loads(out.read_text())
    clips = {row["clip"] for row in content["clips"]}
    assert clips == {str(folder / "clip.webm"), str(tmp_path / "without a suffix")}
    assert list(content["left_out"]) == [str(tmp_path / "bad.mp4")] and "left out" in printed
    first, second = (
        [r["probability"] for r in content["clips"] if r["clip"] == clip] for clip in sorted(clips)
    )
    assert first == second


def test_errors(checkpoint, videos, tmp_path, capsys, monkeypatch):
    good = sorted(videos.iterdir())[0]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "some").mkdir()
    (tmp_path / "notes" / "some" / "x.mp4").write_bytes(b"")

    def error(*arguments):
        return error_of(capsys, monkeypatch, "predict", *arguments, "--checkpoint", checkpoint)

    assert "nowhere does not exist" in error(tmp_path / "nowhere")
    assert "x.mp4: empty file" in error(tmp_path / "notes")
    assert "top must be at least 1" in error(good, "--top", 0)
    assert ".csv or .json" in error(good, "--out", tmp_path / "x.txt")
    with pytest.raises(DataError, match="nowhere"):
        taf_fast.predict(checkpoint, tmp_path / "nowhere")


@pytest.mark.slow
def test_scores_that_are_not_finite_are_an_error(checkpoint, videos):
    info = read_info(checkpoint)
    model = models.build(info.model, len(info.classes), info.num_segments)
    model.fc.bias.data.fill_(3e38)
    model.fc.weight.data.fill_(3e38)  # finite, but what comes of them is not
    clip = next(videos.iterdir())
    with pytest.raises(RunError, match=f"the model's scores of {clip} are not finite numbers"):
        taf_fast.predict(model, clip, size=32)
