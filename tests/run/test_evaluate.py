"""Scores of several views of a video against a literal loop over them, and the command line's choices."""

import json

import numpy as np
import pytest
import torch
from data.video_files import decode
from reference import sampling as official
from run_command import error_of, output_of
from torch import nn

from taf_fast import models
from taf_fast.data import ClipLoader, EvaluationViews, TrainingView, read_ssv2, scan
from taf_fast.run.checkpoint import ModelInfo, save_weights
from taf_fast.run.evaluate import predict, score

CPU = torch.device("cpu")
# What videos of 48 x 36 pixels are cropped to for one view: nothing is resized, for three crops neither.
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
    logits = []
    for taken in official.evaluation_clips(n, num_segments, rule, views.clips):
        for x, y, side in official.evaluation_boxes(width, height, views.crops):
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
        *(
            ([option, value], f"{option[2:].replace('-', '_')} must be at least 1, got {value}")
            for option, value in (
                ("--batch-size", 0),
                ("--threads", 0),
                ("--num-segments", -1),
                ("--size", -1),
            )
        ),
    ],
)
def test_impossible_options_are_named_before_anything_is_read(
    tmp_path, capsys, monkeypatch, options, message
):
    nothing = tmp_path / "nothing"
    arguments = ["evaluate", "--data", nothing, "--checkpoint", nothing, *options]
    assert error_of(capsys, monkeypatch, *arguments) == f"error: {message}\n"
