"""A run can be had again from what its folder says: the configuration as a recipe, and the environment."""

import dataclasses
import json
import os
from datetime import datetime
from pathlib import Path

import pytest

from taf_fast.errors import RunError
from taf_fast.report.record import run_folders
from taf_fast.run.config import FIELDS, FinetuneConfig
from taf_fast.run.folder import RunFolder
from taf_fast.run.recipes import read_recipe
from taf_fast.sweep.plan import read_sweep


@pytest.mark.slow
def test_a_run_is_had_again_by_its_configuration(dataset, runs, tmp_path, monkeypatch, output, error):
    """Weights and all, from another working directory."""
    monkeypatch.chdir(tmp_path)
    config = runs[1] / "config.yaml"
    output("finetune", "--recipe", config, "--out", "again", "--device", "cpu")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (runs[1] / "model.safetensors").read_bytes()
    first, again = (RunFolder(folder).read_config() for folder in (runs[1], tmp_path / "again"))
    assert again == dataclasses.replace(first, out=tmp_path / "again")
    assert "--out is missing" in error("finetune", "--recipe", config)
    environment = json.loads((tmp_path / "again/environment.json").read_text())
    other = RunFolder(runs[1]).read_environment()
    for split, count in (("train", 24), ("validation", 8)):
        assert environment[f"{split} data"].startswith(f"{count} clips, labels ")
        assert environment[f"{split} data"] == other[f"{split} data"]
    assert environment["command line"] and datetime.fromisoformat(environment["date"]).utcoffset() is not None
    assert "resumed by" not in environment
    output("finetune", "--recipe", config, "--out", "again", "--device", "cpu", "--resume")
    resumed = json.loads((tmp_path / "again/environment.json").read_text())
    assert resumed.items() >= environment.items() and resumed["resumed at"] >= environment["date"]


def test_the_configuration_of_a_run_is_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = FinetuneConfig(
        **dict(data="videos", out="runs/x", checkpoint="old.pth", class_order="raw", lr_steps=(3, 5)),
        **dict(epsilon=8 / 255, seed=7, manifest="m", threads=9, device="cuda:3", compile=True),
    )
    Path("runs/x").mkdir(parents=True)
    config.write(Path("runs/x/config.yaml"))
    monkeypatch.chdir("/")
    values = read_recipe(str(tmp_path / "runs/x/config.yaml"))
    # Not what belongs to the folder and the machine.
    assert set(FIELDS) - set(values) == {
        *("out", "manifest", "device", "compile", "decoder", "workers", "threads", "checkpoint_every"),
        *("quarantine_limit", "tensorboard", "wandb", "log_every", "deterministic", "accumulate", "exchange"),
    }
    expected = dataclasses.replace(config, data=tmp_path / "videos", checkpoint=tmp_path / "old.pth")
    assert {name: getattr(expected, name) for name in values} == values
    # By hand, paths are relative to the file.
    (tmp_path / "mine.yaml").write_text("data: ../videos\nout: x\nimagenet: w.pth\nlr: 1/100\n")
    assert read_recipe(str(tmp_path / "mine.yaml")) == {
        "data": tmp_path.parent / "videos",
        "imagenet": tmp_path / "w.pth",
        "lr": 0.01,
    }
    (tmp_path / "mine.yaml").write_text("data: videos\nout: x\nlearning_rate: 1\n")
    with pytest.raises(RunError, match="unknown keys: learning_rate"):
        read_recipe(str(tmp_path / "mine.yaml"))
    (tmp_path / "mine.yaml").write_text("data: videos\n")
    with pytest.raises(RunError, match="unknown keys: data"):
        read_recipe(str(tmp_path / "mine.yaml"))


def test_options_replace_the_files_of_a_recipe(tmp_path, monkeypatch, output, error):
    """Another checkpoint has its own order of classes, and maybe the right classifier."""
    made = []
    monkeypatch.setattr("taf_fast.run.finetune.finetune", lambda config, **options: made.append(config))
    monkeypatch.chdir(tmp_path)
    for folder in ("old", "new"):
        Path(folder).mkdir()
    config = FinetuneConfig(data="old", out="x", checkpoint="old.pth", class_order="raw", size=32)
    config.write(Path("config.yaml"))
    common = ("finetune", "--recipe", "config.yaml", "--out", "y", "--device", "cpu")
    output(*common)
    output(*common, "--data", "new", "--class-order", "alphabetical")
    output(*common, "--checkpoint", "new.pth")
    output(*common, "--imagenet", "new.pth")
    old, files = tmp_path / "old.pth", [(c.data, c.checkpoint, c.class_order, c.imagenet) for c in made]
    assert files == [
        (tmp_path / "old", old, "raw", None),
        (Path("new"), old, "alphabetical", None),
        (tmp_path / "old", Path("new.pth"), None, None),
        (tmp_path / "old", None, None, Path("new.pth")),
    ]
    assert {c.size for c in made} == {32}
    dataclasses.replace(config, class_order=None, new_head=True).write(Path("config.yaml"))
    made.clear()
    output(*common)
    output(*common, "--checkpoint", "new.pth")
    output(*common, "--checkpoint", "new.pth", "--new-head")
    assert [c.new_head for c in made] == [True, False, True]
    os.rmdir("old")
    assert f"{tmp_path / 'old'} does not exist, expected the folder of a data set" in error(*common)
    assert "--data is missing" in error("finetune", "--out", "y")


def test_a_sweep_takes_values_and_no_files_from_a_run(tmp_path):
    config = FinetuneConfig(data="d", out="o", checkpoint="old.pth", class_order="raw", seed=7, lr=0.5)
    config.write(tmp_path / "config.yaml")
    (tmp_path / "sweep.yaml").write_text(
        "base: config.yaml\nstart: {augment: none}\ngrid: {alpha: [0.5, 1]}\n"
    )
    given = {"data": "new", "out": tmp_path / "out", "checkpoint": None}
    for run in read_sweep(str(tmp_path / "sweep.yaml"), given).runs:
        assert (run.config.data, run.config.class_order) == (Path("new"), None)
        assert (run.config.lr, run.config.seed) == (0.5, 0)


def test_a_folder_of_runs_stands_for_them(tmp_path):
    for name in ("b", "a/2", "a/1/seed0", "a/1/seed1", "c"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").touch()
    (tmp_path / "a/1/table.csv").touch()
    (tmp_path / "data/train").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "b")
    one, two, b, c = (tmp_path / name for name in ("a/1", "a/2", "b", "c"))
    assert run_folders([tmp_path]) == [one, two, b, c]
    assert run_folders([b, tmp_path, c]) == [b, one, two, c]
    assert run_folders([tmp_path / "data", tmp_path / "none"]) == [tmp_path / "data", tmp_path / "none"]


@pytest.mark.slow
def test_a_report_of_a_folder_of_runs(runs, tmp_path, output):
    output("report", *runs, "--out", tmp_path / "each.html")
    output("report", runs[0].parent, "--out", tmp_path / "all.html")
    assert (tmp_path / "all.html").read_bytes() == (tmp_path / "each.html").read_bytes()
