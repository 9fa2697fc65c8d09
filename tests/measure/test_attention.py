"""Grad-CAM and its spread over frames against loops in float64, and the strips drawn from it."""

import copy
import csv
import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image
from reference.attention import entropy as reference_entropy
from reference.attention import grad_cam, shares
from reference.temporal_augment import Net, clips_in_range
from torch import nn

import taf_fast
from taf_fast.cli.pictures import print_spread
from taf_fast.data import ClipLoader, DataError, TrainingView, read_ssv2, scan
from taf_fast.data.views.sampling import val_frames
from taf_fast.errors import RunError
from taf_fast.measure.attention import attend, attention, attention_rows, entropy, frame_shares
from taf_fast.report.strips import Seen, Strip, strip_rows, strips_figure
from taf_fast.run.checkpoint import read_info, save_weights
from taf_fast.run.trained import load_clip

CPU = torch.device("cpu")


def read(path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("deep_head", [False, True])
def test_attention_is_grad_cam_scaled_by_its_largest_value(seed, generator, deep_head):
    torch.manual_seed(seed)
    net = Net(deep_head=deep_head).double()
    clips = clips_in_range(net, 6, 4, 12, generator)
    labels = torch.randint(5, (6,), generator=generator)
    net.eval()
    before = copy.deepcopy(net.state_dict())

    maps = attention(net, clips, labels)
    assert maps.dtype == torch.float32 and maps.shape == (6, 4, 6, 6)
    for clip, label, found in zip(clips, labels, maps, strict=True):
        expected = grad_cam(net, clip, label)
        if expected.max() > 0:
            expected /= expected.max()
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    # The model is unchanged.
    assert not net.training and all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


class Pooled(nn.Module):
    """A model that does not come in two parts."""

    def __init__(self):
        super().__init__()
        self.stage = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU())
        self.fc = nn.Linear(6, 5)

    def features(self, clips):
        return self.stage(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])

    def head(self, features):
        return self.fc(features.mean((3, 4))).mean(1)

    def forward(self, clips):
        return self.head(self.features(clips))


def test_attention_of_an_adapted_model(seed, generator):
    torch.manual_seed(seed)
    module = Pooled().double()
    clips = torch.rand(5, 4, 3, 12, 12, dtype=torch.float64, generator=generator)
    labels = torch.randint(5, (5,), generator=generator)
    adapted = taf_fast.adapt(module, "stage", num_segments=4).train()
    maps = attention(adapted, clips, labels)
    assert adapted.training
    for clip, label, found in zip(clips, labels, maps, strict=True):
        expected = grad_cam(module, clip, label)
        expected /= expected.max() or 1
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_model_without_features_of_every_frame_is_named():
    model = taf_fast.models.build("tam_resnet18", 5, 8, temporal_stride=True)
    clips = torch.zeros(1, 8, 32, 32, 3, dtype=torch.uint8)
    with pytest.raises(RunError, match="have 1 frames, expected one for each of the clip's 8"):
        attention(model, clips, torch.tensor([0]))


def test_shares_and_entropy_against_loops(generator):
    maps = torch.rand(7, 5, 3, 4, generator=generator)
    maps[0] = 0  # no attention
    maps[1, [0, 1, 3, 4]] = 0  # all of it on one frame
    maps[2] = 1  # the same on all
    maps[3, 2] = 0
    found = frame_shares(maps)
    spread = entropy(found)
    for clip in range(7):
        expected = shares(maps[clip])
        np.testing.assert_allclose(found[clip], expected, rtol=1e-6)
        assert spread[clip] == pytest.approx(reference_entropy(expected), abs=1e-6)
    assert found[0].tolist() == [0.2] * 5 and spread[0] == pytest.approx(1)
    assert found[1].tolist() == [0, 0, 1, 0, 0] and spread[1] == 0
    assert spread[2] == pytest.approx(1) and found[3, 2] == 0
    assert (spread <= 1).all() and (found >= 0).all()


@pytest.mark.parametrize("frames", range(2, 33))
def test_even_shares_have_entropy_one_and_no_more(frames):
    spread = entropy(frame_shares(torch.zeros(1, frames, 2, 2)))
    assert 1 - 1e-12 < spread <= 1


def test_one_frame_has_all_attention_evenly(generator):
    found = frame_shares(torch.rand(3, 1, 2, 2, generator=generator))
    assert found.tolist() == [[1]] * 3 and entropy(found).tolist() == [1] * 3


@pytest.fixture
def trained(seed):
    """A model with positive attention, so that float32 cannot change which clips have attention."""
    torch.manual_seed(seed)
    model = taf_fast.models.build("tsm_resnet18", 8, 8)
    nn.init.uniform_(model.fc.weight, 0.1, 1)
    return model


@pytest.mark.slow
def test_rows_of_a_loader(dataset, trained, monkeypatch):
    manifest = scan(read_ssv2(dataset, "validation"))
    # One clip turns out to be without attention.
    monkeypatch.setattr(
        "taf_fast.measure.attention.attention",
        lambda model, clips, labels: attention(model, clips, labels) * (labels > 0)[:, None, None, None],
    )
    rows = attention_rows(trained, ClipLoader(manifest, 8, 64, 3, train=False), CPU)
    assert [row["id"] for row in rows] == [clip.id for clip in manifest.clips]
    mean, std = (torch.as_tensor(value).view(3, 1, 1) for value in (trained.mean, trained.std))
    for row, batch in zip(rows, ClipLoader(manifest, 8, 64, 1, train=False), strict=True):
        label = int(batch.labels)
        clip = (batch.clips[0].movedim(-1, 1) / 255 - mean) / std
        parts = shares(grad_cam(trained, clip, label)) if label else [1 / 8] * 8
        assert row == {
            "id": batch.ids[0],
            "label": manifest.classes[label],
            "entropy": pytest.approx(reference_entropy(parts), abs=1e-5),
            "top_share": pytest.approx(max(parts), abs=1e-5),
        }


def test_the_mode_of_the_model_does_not_matter(dataset, trained):
    loader = ClipLoader(scan(read_ssv2(dataset, "validation")), 8, 64, 8, train=False)
    assert attention_rows(trained.train(), loader, CPU) == attention_rows(trained.eval(), loader, CPU)


def test_a_strip_shows_its_rows(generator):
    clip = torch.randint(256, (4, 20, 30, 3), dtype=torch.uint8, generator=generator)
    maps = {name: torch.rand(4, 2, 3, generator=generator) for name in ("before", "after")}
    models = {
        "before": Seen(maps["before"], "another", 0.75, 0.125),
        "after": Seen(maps["after"], "a class", 0.5, 0.5),
    }
    strip = Strip("7", "a class", clip, [3, 5, 8, 9], models)
    rows = strip_rows(strip)
    figure = strips_figure([strip])
    assert len(rows) == 8 and figure.subfigs[0].get_suptitle() == "clip 7"
    frames, *attended, bar = figure.subfigs[0].axes
    assert "attention" in bar.get_ylabel()
    assert frames.get_title(loc="left") == 'frames, true "a class"'
    assert [axis.get_title(loc="left") for axis in attended] == [
        'before: predicted "another" (75 %), true "a class" (12 %)',
        'after: predicted and true "a class" (50 %)',
    ]
    for name, axis in zip(maps, attended, strict=True):
        of_model = [row for row in rows if row["model"] == name]
        expected = shares(maps[name])
        for frame, (row, label) in enumerate(zip(of_model, axis.get_xticklabels(), strict=True)):
            assert row == {
                "clip": "7",
                "class": "a class",
                "model": name,
                "predicted": models[name].predicted,
                "score": models[name].score,
                "true_score": models[name].true_score,
                "frame": frame,
                "video_frame": strip.frames[frame],
                "share": pytest.approx(expected[frame]),
                "mean": pytest.approx(sum(map(sum, maps[name][frame].tolist())) / 6, rel=1e-5),
            }
            assert label.get_text() == f"frame {strip.frames[frame]}\n{100 * row['share']:.0f} %"
        grey = frames.images[0].get_array() @ [0.299, 0.587, 0.114]
        np.testing.assert_allclose(axis.images[0].get_array(), grey)
        assert axis.images[1].get_array()[0, 0] == pytest.approx(maps[name][0, 0, 0].item())


def test_a_clip_without_attention_is_drawn_without(generator):
    clip = torch.randint(256, (3, 20, 30, 3), dtype=torch.uint8, generator=generator)
    nothing = Seen(torch.zeros(3, 2, 3), "another", 0.75, 0.125)
    strip = Strip("7", "a class", clip, [0, 1, 2], {"a model": nothing})
    axis = strips_figure([strip]).subfigs[0].axes[1]
    assert axis.get_title(loc="left").replace("\n", " ").endswith("no attention to the true class")
    assert [label.get_text() for label in axis.get_xticklabels()] == ["frame 0", "frame 1", "frame 2"]
    assert np.ma.getmaskarray(axis.images[1].get_array()).all()
    assert [(row["share"], row["mean"]) for row in strip_rows(strip)] == [(None, 0)] * 3


@pytest.mark.slow
def test_attention_command(dataset, runs, tmp_path, output):
    ids = [clip.id for clip in scan(read_ssv2(dataset, "validation")).clips][3:5]
    out, measure = tmp_path / "strips.png", tmp_path / "attention.csv"
    checkpoints = [part for run in runs for part in ("--checkpoint", run / "model.safetensors")]
    clips = [part for id in ids for part in ("--clip", id)]
    arguments = ["attention", "--data", dataset, *checkpoints, "--device", "cpu", "--batch-size", 3]
    printed = output(*arguments, *clips, "--out", out, "--measure", measure)

    manifest = scan(read_ssv2(dataset, "validation"))
    batches = list(ClipLoader(manifest, 8, 64, 1, train=False))
    strips, measured = read(out.with_suffix(".csv")), read(measure)
    assert len(strips) == 2 * 2 * 8 and len(measured) == 2 * 8
    assert list(measured[0]) == ["checkpoint", "id", "label", "entropy", "top_share"]
    for run, rows in zip(runs, (measured[:8], measured[8:]), strict=True):
        model = taf_fast.models.build("tsm_resnet18", 8, 8)
        taf_fast.models.load(model, run / "model.safetensors")
        for row, batch in zip(rows, batches, strict=True):
            expected = shares(attention(model, batch.clips, batch.labels)[0])
            label = manifest.classes[batch.labels[0]]
            assert (row["checkpoint"], row["id"], row["label"]) == (run.name, batch.ids[0], label)
            assert float(row["entropy"]) == pytest.approx(reference_entropy(expected), abs=1e-3)
            assert float(row["top_share"]) == pytest.approx(max(expected), abs=1e-3)
            if batch.ids[0] in ids:
                drawn = [r for r in strips if (r["clip"], r["model"]) == (batch.ids[0], run.name)]
                assert [int(r["frame"]) for r in drawn] == list(range(8))
                heat, scores = attend(model, batch.clips, batch.labels)
                if heat.any():
                    np.testing.assert_allclose([float(r["share"]) for r in drawn], expected, atol=1e-4)
                else:
                    assert {r["share"] for r in drawn} == {""}
                best = int(scores.argmax())
                assert {r["predicted"] for r in drawn} == {manifest.classes[best]}
                assert float(drawn[0]["score"]) == pytest.approx(scores[0, best].item(), abs=1e-3)
                true = scores[0, batch.labels[0]].item()
                assert float(drawn[0]["true_score"]) == pytest.approx(true, abs=1e-3)
                clip = next(clip for clip in manifest.clips if clip.id == batch.ids[0])
                taken = val_frames(clip.frames, 8, "segments").tolist()
                assert [int(r["video_frame"]) for r in drawn] == taken

        (line,) = [line.split() for line in printed.splitlines() if line.startswith(run.name)]
        entropies, tops = (np.array([float(row[c]) for row in rows]) for c in ("entropy", "top_share"))
        assert line[1] == "8" and line[2] == str((entropies > 1 - 1e-9).sum())
        numbers = [float(line[i]) for i in (3, 5, 6, 8)]
        expected = [
            number
            for values in (entropies, tops)
            # 2.3646 is the 97.5 % quantile of Student's t with 7 degrees of freedom.
            for number in (values.mean(), 2.3646 * values.std(ddof=1) / math.sqrt(8))
        ]
        np.testing.assert_allclose(numbers, expected, atol=1e-4)

    with Image.open(out) as image:
        image.load()
        # Two blocks of three strips of eight frames.
        assert image.width > 8 * 100 and image.height > 2 * 3 * 100


def test_one_video_has_no_interval(capsys):
    print_spread({"a model": [{"entropy": 0.5, "top_share": 0.25}]})
    line = capsys.readouterr().out.splitlines()[1]
    assert line.split()[2:] == ["1", "0", "0.5000", "0.2500"]


def test_attention_names_what_it_cannot_do(dataset, runs, tmp_path, error):
    weights = runs[0] / "model.safetensors"
    arguments = ["attention", "--data", dataset, "--checkpoint", weights]
    out = tmp_path / "strips.png"
    assert "--out for a picture, --measure for numbers" in error(*arguments)
    message = "'nothing': no such clip, expected the id of a readable video"
    assert message in error(*arguments, "--out", out, "--clip", "nothing")
    assert "must be a .png file, got" in error(*arguments, "--out", tmp_path / "a.pdf")
    assert "nowhere/a.png" in error(*arguments, "--out", tmp_path / "nowhere" / "a.png")
    assert "nowhere/a.csv" in error(*arguments, "--measure", tmp_path / "nowhere" / "a.csv")
    both = error(*arguments, "--out", out, "--measure", tmp_path / "strips.csv")
    assert "--measure must not be " in both
    assert not list(tmp_path.iterdir())


def test_models_that_take_other_frames_are_not_drawn_together(dataset, runs, tmp_path, error):
    other = tmp_path / "other" / "model.safetensors"
    other.parent.mkdir()
    model = taf_fast.models.build("tsm_resnet18", 8, 4)
    info = dataclasses.replace(read_info(runs[0] / "model.safetensors"), num_segments=4)
    save_weights(other, model, info)
    arguments = ["--checkpoint", runs[0] / "model.safetensors", "--checkpoint", other]
    message = error("attention", "--data", dataset, *arguments, "--out", tmp_path / "strips.png")
    assert "other takes other frames of a clip, or another size, than baseline" in message


def test_a_clip_is_loaded_as_its_loader_would(dataset):
    manifest = scan(read_ssv2(dataset, "validation"))
    damaged = dataclasses.replace(manifest.clips[0], defect="is damaged")
    manifest = dataclasses.replace(manifest, clips=(damaged, *manifest.clips[1:]))
    view = TrainingView("shared")  # takes other frames of clips as short as these
    loader = ClipLoader(manifest, 16, 32, 2, train=False, view=view, quarantine_limit=1)
    batches = list(ClipLoader(manifest, 16, 32, 1, train=False, view=view, quarantine_limit=1))
    for id, expected in ((None, batches[0]), (manifest.clips[5].id, batches[4])):
        batch = load_clip(loader, id)
        assert batch.ids == expected.ids and torch.equal(batch.labels, expected.labels)
        assert torch.equal(batch.clips, expected.clips)
    with pytest.raises(DataError, match=f"clip '{damaged.id}': is damaged, expected the id of a readable"):
        load_clip(loader, damaged.id)
