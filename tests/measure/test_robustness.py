"""Scores under corruption against a loop over single videos, and the command line."""

import os
import socket
import subprocess

import numpy as np
import pytest
import torch
from run_command import command
from torch import nn

from taf_fast import cli, models
from taf_fast.corruptions import NAMES, SEVERITIES, corrupt
from taf_fast.data import ClipLoader, read_ssv2, scan
from taf_fast.files import read_csv
from taf_fast.measure import robustness as module
from taf_fast.measure.robustness import robustness, summary
from taf_fast.process.progress import Progress
from taf_fast.run.checkpoint import ModelInfo, save_weights

CPU = torch.device("cpu")
SIZE = 32
COLUMNS = ["checkpoint", "corruption", "severity", "top1", "top5", "loss", "clips"]


class Readout(nn.Module):
    """Logits of single pixels, which noise moves; in training they are others."""

    mean = std = None

    def __init__(self, generator: torch.Generator):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4 * 3 * 64, 8, generator=generator, dtype=torch.float64))

    def forward(self, clips: torch.Tensor) -> torch.Tensor:  # [B,4,3,32,32]
        logits = (clips[..., ::4, ::4].flatten(1).double() - 0.5) @ self.weight
        return -logits if self.training else logits


def loader_of(dataset, batch_size, split="train"):
    return ClipLoader(scan(read_ssv2(dataset, split)), 4, SIZE, batch_size, train=False)


@pytest.mark.slow
def test_scores_are_those_of_a_loop_over_videos(monkeypatch, dataset, generator):
    model = Readout(generator).train()
    names, severities = ("snow", "gaussian_noise", "brightness"), (1, 5)
    decoded, progress = [], []
    request = ClipLoader._request
    monkeypatch.setattr(ClipLoader, "_request", lambda *args: (decoded.extend(args[1]), request(*args))[1])
    monkeypatch.setattr(Progress, "update", lambda self, done, note: progress.append((done, self.total)))
    rows = robustness(model, loader_of(dataset, 7), CPU, names, severities)
    assert sorted(decoded) == list(range(24)) and model.training
    assert progress == [(done, 28) for done in range(1, 29)]  # 4 batches under 7 conditions

    seeds = {}
    monkeypatch.setattr(module, "corrupt", lambda clips, name, severity, own: seeds.setdefault(own[0], clips))
    robustness(model, loader_of(dataset, 1), CPU, ("snow",), (1,))
    assert len(seeds) == 24  # in the order of the manifest
    weight = model.weight.detach().numpy()
    conditions = [("clean", 0), *((name, severity) for name in names for severity in severities)]
    assert [(row["corruption"], row["severity"]) for row in rows] == conditions
    for row, (name, severity) in zip(rows, conditions, strict=True):
        places, losses = [], []
        for batch, seed in zip(loader_of(dataset, 1), seeds, strict=True):
            clip = batch.clips if name == "clean" else corrupt(batch.clips, name, severity, [seed])
            pixels = clip[0].numpy()[:, ::4, ::4].transpose(0, 3, 1, 2) / 255
            logits = (pixels.ravel() - 0.5) @ weight
            own = logits[batch.labels.item()]
            places.append((logits > own).sum())
            losses.append(np.log(np.exp(logits - own).sum()))
        assert row["clips"] == 24 and row["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
        assert row["top1"] == pytest.approx(np.mean(np.array(places) < 1))
        assert row["top5"] == pytest.approx(np.mean(np.array(places) < 5))
    assert len({row["loss"] for row in rows}) == 7


def test_the_summary_is_of_means():
    rows = [
        {"corruption": name, "severity": severity, "top1": top1}
        for name, severity, top1 in (
            ("clean", 0, 0.9),
            ("snow", 1, 0.5),
            ("snow", 2, 0.3),
            ("snow", 5, 0.1),
            ("brightness", 1, 0.8),
        )
    ]
    assert summary(rows) == pytest.approx({"clean": 0.9, "snow": 0.3, "brightness": 0.8, "mean": 0.55})


@pytest.fixture(scope="module")
def weights(dataset, tmp_path_factory):
    """Files of two models."""
    paths = [tmp_path_factory.mktemp("weights") / name for name in ("one.safetensors", "two.safetensors")]
    classes = read_ssv2(dataset, "validation").classes
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        model = models.build("tsm_resnet18", 8, 4)
        save_weights(path, model, ModelInfo("tsm_resnet18", classes, 4, SIZE))
    return paths


def arguments_of(dataset, weights, *options):
    checkpoints = [part for path in weights for part in ("--checkpoint", path)]
    return ["robustness", "--data", dataset, *checkpoints, "--device", "cpu", *options]


@pytest.mark.slow
def test_the_table_and_the_file(dataset, weights, tmp_path, output):
    out = tmp_path / "robustness.csv"
    printed = output(*arguments_of(dataset, weights, "--out", out))
    rows = read_csv(out)
    conditions = [("clean", "0"), *((name, str(severity)) for name in NAMES for severity in SEVERITIES)]
    assert list(rows[0]) == COLUMNS
    assert [(r["checkpoint"], r["corruption"], r["severity"]) for r in rows] == [
        (str(path), *condition) for path in weights for condition in conditions
    ]
    assert {row["clips"] for row in rows} == {"8"}
    tops = np.array([float(row["top1"]) for row in rows]).reshape(2, 41)
    means = tops[:, 1:].reshape(2, 8, 5).mean(2)
    table = np.c_[tops[:, 0], means, means.mean(1)]
    lines = [line.split() for line in printed.splitlines() if line.rstrip().endswith(tuple("0123456789"))]
    figures = [line[-10:] for line in lines if len(line) >= 10]
    assert figures == [[f"{100 * value:.1f}" for value in row] for row in table]


@pytest.mark.slow
def test_some_corruptions_and_severities_on_two_ranks(dataset, weights, tmp_path, output):
    options = ["--corruption", "snow", "--corruption", "zoom_blur", "--severity", 4, "--severity", 2]
    options += ["--corruption", "snow", "--batch-size", 3]
    alone, shared = tmp_path / "alone.csv", tmp_path / "shared.csv"
    printed = output(*arguments_of(dataset, weights[:1], *options, "--out", alone))
    assert "zoom" in printed and "brightness" not in printed
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    group = dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    processes = [
        subprocess.Popen(
            command(*arguments_of(dataset, weights[:1], *options, "--out", shared)),
            env=os.environ | group | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    (first, errors), second = (process.communicate(timeout=120) for process in processes)
    assert [process.returncode for process in processes] == [0, 0], (errors, second)
    assert second == ("", "") and "zoom" in first
    rows, expected = read_csv(shared), read_csv(alone)
    assert [(r["corruption"], r["severity"]) for r in expected] == [
        ("clean", "0"), ("snow", "4"), ("snow", "2"), ("zoom_blur", "4"), ("zoom_blur", "2"),
    ]  # fmt: skip
    for row, other in zip(rows, expected, strict=True):
        assert float(row.pop("loss")) == pytest.approx(float(other.pop("loss")), rel=1e-5)
        assert row == other


def test_what_was_measured_is_kept(monkeypatch, dataset, weights, tmp_path, capsys):
    out = tmp_path / "robustness.csv"
    measured = []

    def once(model, loader, device, *rest):
        if measured:
            raise KeyboardInterrupt
        measured.append(robustness(model, loader, device, *rest))
        return measured[0]

    monkeypatch.setattr(module, "robustness", once)
    arguments = arguments_of(dataset, weights, "--out", out, "--corruption", "snow", "--severity", 3)
    monkeypatch.setattr("sys.argv", ["taf-fast", *map(str, arguments)])
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        cli.main()
    assert [row["corruption"] for row in read_csv(out)] == ["clean", "snow"]
    assert f"{100 * measured[0][1]['top1']:.1f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--corruption", "fog"], f"corruption must be one of {', '.join(NAMES)}, got 'fog'"),
        (
            ["--corruption", "snow", "--corruption", "Snow"],
            f"corruption must be one of {', '.join(NAMES)}, got 'Snow'",
        ),
        (["--severity", 0], "severity must be between 1 and 5, got 0"),
        (["--severity", 3, "--severity", 6], "severity must be between 1 and 5, got 6"),
        (["--batch-size", 0], "batch_size must be at least 1, got 0"),
        (["--size", -1], "size must be between 1 and 4096, got -1"),
        (
            ["--out", "nowhere/robustness.csv"],
            "nowhere/robustness.csv cannot be written: there is no folder nowhere",
        ),
    ],
)
def test_impossible_options_are_named_before_anything_is_read(tmp_path, monkeypatch, error, options, message):
    monkeypatch.chdir(tmp_path)
    nothing = tmp_path / "nothing"
    assert error(*arguments_of(tmp_path, [nothing], *options)) == f"error: {message}\n"


def test_no_checkpoint_is_scored_when_another_cannot_be(monkeypatch, dataset, weights, tmp_path, error):
    monkeypatch.setattr(module, "robustness", None)
    missing = tmp_path / "missing.safetensors"
    assert str(missing) in error(*arguments_of(dataset, [weights[0], missing]))
