"""Scores of several views of a video against a literal loop over them, and the command line's choices."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from data.video_files import decode
from PIL import Image
from reference import sampling as official
from run_command import error_of, output_of
from torch import nn

import taf_fast
from taf_fast import models
from taf_fast.data import Batch, ClipLoader, EvaluationViews, TrainingView, read_ssv2, scan
from taf_fast.errors import RunError
from taf_fast.files import read_csv
from taf_fast.measure.by_class import class_scores, confusion_matrix, mean_class_accuracy
from taf_fast.measure.evaluate import Prediction, predict, predict_batch, read_predictions, score
from taf_fast.report.confusion import confusion_figure, confusion_rows
from taf_fast.run.checkpoint import ModelInfo, save_weights

CPU = torch.device("cpu")
# The crop of 48 x 36 pixel videos for one view, such that neither one crop nor three resize anything.
SIZE = 32


class Readout(nn.Module):
    """Logits of the brightness of 4 x 4 fields in every frame, of any size that 4 divides."""

    mean = std = None

    def __init__(self, num_segments: int, num_classes: int, generator: torch.Generator):
        super().__init__()
        weight = torch.randn(num_segments, 3, 4, 4, num_classes, generator=generator)
        self.weight = nn.Parameter(weight)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:  # [B,T,3,H,W]
        fields = nn.functional.adaptive_avg_pool2d(clips.flatten(0, 1), 4).unflatten(0, clips.shape[:2])
        return 5 * torch.tanh(torch.einsum("btchw,tchwk->bk", fields - 0.5, self.weight))


def reference_logits(
    path, model: Readout, num_segments: int, rule: str, views: EvaluationViews
) -> np.ndarray:
    """One video's, float64 [classes]."""
    frames = decode(path) / 255
    n, height, width, _ = frames.shape
    weight = model.weight.detach().double().numpy()
    scaled, squares = official.evaluation_squares(width, height, SIZE, views.crops)
    assert scaled == (width, height)
    logits = []
    for taken in official.evaluation_clips(n, num_segments, rule, views.clips):
        for x, y, side in squares:
            total = 0.0
            for segment, frame in enumerate(taken):
                square = frames[frame, y : y + side, x : x + side]
                fields = square.reshape(4, side // 4, 4, side // 4, 3).mean((1, 3))
                total = total + np.einsum("hwc,chwk->k", fields - 0.5, weight[segment])
            logits.append(5 * np.tanh(total))
    return sum(logits) / len(logits)


@pytest.mark.parametrize("crops", [1, 3])
@pytest.mark.parametrize("clips", [1, 2])
@pytest.mark.parametrize("rule", ["segments", "shared", "interleaved"])
@pytest.mark.parametrize("num_segments", [4, 16])
def test_scores_are_those_of_a_loop_over_views(dataset, generator, num_segments, rule, clips, crops):
    manifest, views = scan(read_ssv2(dataset, "train")), EvaluationViews(crops, clips)
    model = Readout(num_segments, 8, generator)
    view = TrainingView(rule)
    loader = ClipLoader(manifest, num_segments, SIZE, 7, train=False, view=view, views=views)
    scores = score(predict(model, loader, CPU))

    logits = np.stack([reference_logits(c.path, model, num_segments, rule, views) for c in manifest.clips])
    labels = np.array([clip.label for clip in manifest.clips])
    own = logits[np.arange(len(labels)), labels]
    losses = np.log(np.exp(logits).sum(1)) - own
    assert scores.clips == 24 and scores.loss == pytest.approx(losses.mean(), abs=1e-4)
    # Ranks, with what float32 can change.
    for share, k in ((scores.top1, 1), (scores.top5, 5)):
        ahead = logits - own[:, None]
        ahead[np.arange(len(labels)), labels] = -np.inf
        least, most = ((ahead > slack).sum(1) < k for slack in (-1e-4, 1e-4))
        assert least.mean() - 1e-6 <= share <= most.mean() + 1e-6


def test_the_training_videos_in_the_view_of_validation(dataset, generator):
    model = Readout(4, 8, generator)
    found = taf_fast.evaluate(model, dataset, num_segments=4, size=SIZE, threads=1, split="train")
    clips = scan(read_ssv2(dataset, "train")).clips
    logits = np.stack([reference_logits(c.path, model, 4, "segments", EvaluationViews()) for c in clips])
    own = logits[np.arange(len(clips)), [clip.label for clip in clips]]
    assert {prediction.id for prediction in found.predictions} == {clip.id for clip in clips}
    assert found.scores.loss == pytest.approx((np.log(np.exp(logits).sum(1)) - own).mean(), abs=1e-4)
    with pytest.raises(RunError, match="split must be one of train, validation, got 'test'"):
        taf_fast.evaluate(model, dataset, split="test")


@pytest.fixture
def loaders(monkeypatch):
    """The loaders that the command line makes."""
    made = []

    def loader(*args, **options):
        made.append(ClipLoader(*args, **options))
        return made[-1]

    monkeypatch.setattr("taf_fast.run.trained.ClipLoader", loader)
    return made


RULES = {"tsm": "segments", "gst": "segments", "gst_large": "segments", "tam": "shared", "tpn": "interleaved"}


@pytest.mark.slow
@pytest.mark.parametrize("family", RULES)
def test_the_family_of_the_model_says_how_frames_are_taken(
    dataset, tmp_path, capsys, monkeypatch, loaders, family
):
    torch.manual_seed(0)
    name, data = f"{family}_resnet18", read_ssv2(dataset, "validation")
    model = models.build(name, 8, 8)
    weights, out = tmp_path / "model.safetensors", tmp_path / "scores.json"
    save_weights(weights, model, ModelInfo(name, data.classes, 8, SIZE))
    arguments = ["evaluate", "--data", dataset, "--checkpoint", weights, "--out", out, "--device", "cpu"]

    printed = output_of(capsys, monkeypatch, *arguments)
    one = json.loads(out.read_text())
    several = output_of(capsys, monkeypatch, *arguments, "--crops", 3, "--clips", 2, "--batch-size", 7)
    six = json.loads(out.read_text())
    assert "(8 videos)" in printed and "(8 videos)" in several and one["loss"] != six["loss"]

    for loader, scores, views in zip(loaders, (one, six), ((1, 1), (3, 2)), strict=True):
        assert loader.view.sampling == RULES[family] and loader.views == EvaluationViews(*views)
        manifest, view = scan(data), TrainingView(RULES[family])
        same = ClipLoader(manifest, 8, SIZE, 32, train=False, view=view, views=loader.views)
        expected = score(predict(model, same, CPU))
        assert scores["loss"] == pytest.approx(expected.loss, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--crops", 2], "crops must be 1 or 3, got 2"),
        (["--crops", 0], "crops must be 1 or 3, got 0"),
        (["--clips", 0], "clips must be 1 or 2, got 0"),
        (["--clips", 3], "clips must be 1 or 2, got 3"),
        (["--batch-size", 0], "batch_size must be at least 1, got 0"),
        (["--threads", 0], "threads must be between 1 and 1024, or none, got 0"),
        (["--num-segments", -1], "num_segments must be between 1 and 1024, got -1"),
        (["--size", -1], "size must be between 1 and 4096, got -1"),
    ],
)
def test_impossible_options_are_named_before_anything_is_read(
    tmp_path, capsys, monkeypatch, options, message
):
    nothing = tmp_path / "nothing"
    arguments = ["evaluate", "--data", tmp_path, "--checkpoint", nothing, *options]
    assert error_of(capsys, monkeypatch, *arguments) == f"error: {message}\n"


def test_the_limit_of_bad_videos_is_an_option(dataset, tmp_path, output, error):
    root = tmp_path / "data"
    shutil.copytree(dataset, root)
    weights = tmp_path / "model.safetensors"
    model = models.build("tsm_resnet18", 8, 4)
    save_weights(weights, model, ModelInfo("tsm_resnet18", read_ssv2(root, "validation").classes, 4, 32))
    for sample in read_ssv2(root, "validation").samples[:2]:
        sample.path.write_bytes(b"")
    arguments = ("evaluate", "--data", root, "--checkpoint", weights)
    message = error(*arguments)
    assert "2 of 8 clips are bad, more than the limit of 10%" in message and "--quarantine-limit" in message
    assert "(6 videos)" in output(*arguments, "--quarantine-limit", "1/4")
    assert "quarantine_limit must be a fraction between 0 and 1, got 2.0" in error(
        *arguments, "--quarantine-limit", 2
    )


def literal_scores(rows: list[dict], classes: int) -> dict:
    """Confusion matrix and scores of classes from a CSV of predictions, by loops."""
    matrix = [[0] * classes for _ in range(classes)]
    for row in rows:
        matrix[int(row["label"])][int(row["predicted"])] += 1
    found: dict = {"matrix": matrix, "recall": [], "precision": [], "top5": []}
    for label in range(classes):
        own = sum(matrix[label])
        taken = sum(matrix[true][label] for true in range(classes))
        in_five = sum(row["label"] == str(label) and int(row["place"]) <= 4 for row in rows)
        found["recall"].append(matrix[label][label] / own if own else None)
        found["precision"].append(matrix[label][label] / taken if taken else None)
        found["top5"].append(in_five / own if own else None)
    return found


def predictions_of(logits: torch.Tensor, labels: torch.Tensor) -> list[Prediction]:
    batch = Batch(torch.zeros(len(labels), 1, 1, 1, 3, dtype=torch.uint8), labels, [], 0.0)
    batch.ids.extend(f"clip {n}" for n in range(len(labels)))

    class Fixed(nn.Module):
        def forward(self, clips):
            return logits

    return predict_batch(Fixed(), batch, CPU)


def test_scores_of_classes_are_those_of_loops(generator):
    """Of random logits; class 3 has no video, and class 5 is never predicted."""
    classes = [f"class {n}" for n in range(7)]
    labels = torch.randint(7, (60,), generator=generator)
    labels[labels == 3] = 4
    logits = torch.randn(60, 7, generator=generator)
    logits[:, 5] = -9
    found = predictions_of(logits, labels)
    probabilities = np.exp(logits.double().numpy())
    probabilities /= probabilities.sum(1, keepdims=True)
    for n, prediction in enumerate(found):
        assert prediction.predicted == probabilities[n].argmax()
        assert prediction.score == pytest.approx(probabilities[n].max(), rel=1e-5)
        assert math.exp(-prediction.loss) == pytest.approx(probabilities[n, labels[n]], rel=1e-4)
    expected = literal_scores([{k: str(v) for k, v in vars(p).items()} for p in found], 7)
    assert confusion_matrix(found, 7).tolist() == expected["matrix"]
    rows = class_scores(found, classes)
    for name, column in (("recall", "top1"), ("precision", "precision"), ("top5", "top5")):
        assert [row[column] for row in rows] == [pytest.approx(value) for value in expected[name]]
    for label, row in enumerate(rows):
        wrong = {n: count for n, count in enumerate(expected["matrix"][label]) if n != label}
        assert (row["label"], row["class"], row["clips"]) == (label, classes[label], sum(labels == label))
        assert row["mistaken"] == max(wrong.values())
        if row["mistaken"]:
            assert wrong[classes.index(row["mistaken_for"])] == row["mistaken"]
        else:
            assert row["mistaken_for"] == ""
    known = [recall for recall in expected["recall"] if recall is not None]
    assert len(known) == 6 and mean_class_accuracy(rows) == pytest.approx(sum(known) / 6)


@pytest.mark.slow
def test_evaluate_writes_every_class_and_the_confusion_matrix(dataset, runs, tmp_path, output):
    files = {name: tmp_path / name for name in ("scores.json", "p.csv", "classes.csv", "confusion.png")}
    names = ["--out", "--predictions", "--per-class", "--confusion"]
    options = [part for pair in zip(names, files.values(), strict=True) for part in pair]
    weights = runs[0] / "model.safetensors"
    printed = output("evaluate", "--data", dataset, "--checkpoint", weights, "--device", "cpu", *options)

    classes = read_ssv2(dataset, "validation").classes
    rows, by_class = read_csv(files["p.csv"]), read_csv(files["classes.csv"])
    expected = literal_scores(rows, 8)
    for row in rows:
        assert row["class"] == classes[int(row["label"])]
        assert row["predicted_class"] == classes[int(row["predicted"])]
    for label, row in enumerate(by_class):
        assert row["class"] == classes[label] and float(row["top1"]) == expected["recall"][label]
        precision = expected["precision"][label]
        assert row["precision"] == ("" if precision is None else str(precision))
    confusion = read_csv(tmp_path / "confusion.csv")
    columns = [f"{n}: {name}" for n, name in enumerate(classes)]
    assert [[int(row[name]) for name in columns] for row in confusion] == expected["matrix"]
    scores, mean = json.loads(files["scores.json"].read_text()), sum(expected["recall"]) / 8
    assert scores["mean_class_accuracy"] == pytest.approx(mean)
    assert f"mean class accuracy {100 * mean:.2f} % (8 classes)" in printed
    with Image.open(files["confusion.png"]) as image:
        image.load()
        assert min(image.size) > 300
    # The text beside the CSV has a line for every column, in order.
    text = (tmp_path / "p.columns.txt").read_text().splitlines()
    assert text[0].startswith("Columns of p.csv")
    assert [line.split()[0] for line in text[2 : 2 + len(rows[0])]] == list(rows[0])

    # In Python: the file, and a model of one's own.
    model = models.build("tsm_resnet18", 8, 8)
    models.load(model, weights)
    for given, options in ((weights, {}), (model.train(), {"size": 64})):
        found = taf_fast.evaluate(given, dataset, **options)
        assert found.confusion_matrix().tolist() == expected["matrix"]
        assert found.scores.top1 == scores["top1"] and found.mean_class_accuracy == pytest.approx(mean)
        assert found.classes == classes and found.left_out == {}
        found.write_predictions(tmp_path / "again.csv")
        again = read_csv(tmp_path / "again.csv")
        for one, other in zip(again, rows, strict=True):
            assert one["predicted"] == other["predicted"]
            assert float(one["score"]) == pytest.approx(float(other["score"]), rel=1e-3)
    assert model.training


def test_a_model_of_other_classes_is_refused(dataset, generator):
    model = Readout(4, 9, generator)
    with pytest.raises(RunError, match="the model has 9 classes, the data set has 8"):
        taf_fast.evaluate(model, dataset, num_segments=4, size=SIZE)
    with pytest.raises(RunError, match="size must be between 1 and 4096, got 0"):
        taf_fast.evaluate(model, dataset, size=0)


def test_cells_of_the_confusion_matrix():
    matrix = np.array([[3, 1, 0], [0, 0, 0], [2, 0, 6]])
    figure = confusion_figure(matrix, ["=one", "$two$", "three"])
    axis, bar = figure.axes
    shares = axis.images[0].get_array()
    assert np.ma.filled(shares, -1).tolist() == [[0.75, 0.25, -1], [-1, -1, -1], [0.25, -1, 0.75]]
    assert {(text.get_position(), text.get_text()) for text in axis.texts} == {
        ((0, 0), "3"),
        ((1, 0), "1"),
        ((0, 2), "2"),
        ((2, 2), "6"),
    }
    assert [label.get_text() for label in axis.get_yticklabels()] == ["=one", "$two$", "three"]
    assert axis.get_xlabel() == "predicted class" and "share" in bar.get_ylabel()
    assert confusion_rows(matrix, ["=one", "$two$", "three"])[2] == {
        "label": 2,
        "class": "three",
        "0: =one": 2,
        "1: $two$": 0,
        "2: three": 6,
    }


def test_results_need_files_of_their_own(tmp_path, error):
    same = ["--out", tmp_path / "a.csv", "--per-class", tmp_path / "a.csv"]
    nothing = ["evaluate", "--data", tmp_path, "--checkpoint", tmp_path / "nothing"]
    assert f"{tmp_path / 'a.csv'} is the file of two results" in error(*nothing, *same)
    both = ["--confusion", tmp_path / "a.png", "--predictions", tmp_path / "a.csv"]
    assert f"{tmp_path / 'a.csv'} is the file of two results" in error(*nothing, *both)
    assert "--confusion must be a .png file" in error(*nothing, "--confusion", tmp_path / "a.pdf")


def test_predictions_without_scores_can_be_read(tmp_path):
    (tmp_path / "old.csv").write_text("id,label,predicted,place,loss\na,1,2,1,0.5\n")
    assert read_predictions(tmp_path / "old.csv") == [Prediction("a", 1, 2, 1, 0.5, None)]
