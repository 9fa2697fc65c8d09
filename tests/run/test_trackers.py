"""TensorBoard's and W&B's numbers of a run are those of its metrics, each step once, whatever happens."""

import dataclasses
import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch
from event_files import scalars

from taf_fast.errors import MissingDependency, RunError
from taf_fast.run import trackers
from taf_fast.run.config import FinetuneConfig
from taf_fast.run.finetune import finetune
from taf_fast.run.folder import RunFolder
from taf_fast.run.metrics import read_metrics
from taf_fast.run.trackers import points

pytest.importorskip("tensorboard")

STEP = {
    **{"step": 3, "epoch": 1, "lr": 0.01, "wait_seconds": 0.25, "loss": 2.0, "clean_loss": 2.5},
    **{"adv_loss": 1.5, "attacked": 2.0, "failed": 1.0, "by_running_statistics": 0.0, "grad_norm": 4.0},
    **{"correct": 1.0, "clips": 4, "step_seconds": 0.75, "time": 1.5e9},
}
VALIDATION = {"step": 3, "epoch": 1, "val_top1": 0.5, "val_top5": 1.0, "val_loss": 1.25, "val_clips": 8}


def assert_same_numbers(folder, config):
    lines = read_metrics(folder / "metrics.jsonl")
    expected = {
        (tag, line["step"]): (value, line["time"])
        for line in lines
        for tag, value in points(line, config.num_segments).items()
        if "val_loss" in line or line["step"] % config.log_every == 0
    }
    found = scalars(folder)
    assert found.keys() == expected.keys()
    for key, (value, time) in expected.items():
        assert found[key] == (pytest.approx(value, rel=1e-6), pytest.approx(time, abs=1e-3)), key
    return lines


def test_points():
    assert points(STEP, num_segments=8) == {
        **{"train/loss": 2.0, "train/clean_loss": 2.5, "train/adv_loss": 1.5, "train/accuracy": 0.25},
        **{"train/grad_norm": 4.0, "train/lr": 0.01, "train/epoch": 1},
        **{"attack/share": 0.5, "attack/failed": 1.0, "attack/by_running_statistics": 0.0},
        **{"time/wait_seconds": 0.25, "time/step_seconds": 0.75, "time/frames_per_second": 32.0},
    }
    assert points(VALIDATION, num_segments=8) == {
        **{"validation/top1": 0.5, "validation/top5": 1.0, "validation/loss": 1.25, "validation/clips": 8},
    }
    plain = {
        name: STEP[name] for name in ("step", "loss", "correct", "clips", "step_seconds", "wait_seconds")
    }
    assert set(points(plain, 8)) == {
        *("train/loss", "train/accuracy", "time/wait_seconds", "time/step_seconds", "time/frames_per_second")
    }


@pytest.mark.slow
def test_event_files_of_whole_runs(runs):
    for folder in runs:
        lines = assert_same_numbers(folder, RunFolder(folder).read_config())
        assert sum("loss" in line for line in lines) == lines[-1]["step"] > 0


class Killed(Exception):
    pass


@pytest.mark.slow
def test_killed_and_resumed(dataset, tmp_path, monkeypatch):
    """In the middle of a record, two steps after the last state; then with another --log-every."""
    config = FinetuneConfig(
        **dict(data=dataset, out=tmp_path / "run", model="tsm_resnet18", size=32, batch_size=4, epochs=1),
        **dict(lr=0.01, checkpoint_every=3, tensorboard=True),
    )
    steps = iter(range(5))
    step = torch.optim.SGD.step

    def failing(*arguments, **options):
        if next(steps, None) is None:
            raise Killed
        return step(*arguments, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", failing)
    with pytest.raises(Killed):
        finetune(config)
    monkeypatch.undo()
    (file,) = config.out.glob("*tfevents*")
    file.write_bytes(file.read_bytes()[:-7])
    # Its process was another one.
    file.rename(file.with_name("events.out.tfevents.0000000001.host.1.taf_fast"))
    resumed = dataclasses.replace(config, log_every=2)
    finetune(resumed, resume=True)
    lines = assert_same_numbers(config.out, resumed)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 6]
    assert {step for tag, step in scalars(config.out) if tag == "train/loss"} == {2, 4, 6}


class FakeWandb:
    """What is used of wandb: a step that it knows already is left as it is."""

    class Error(Exception):
        pass

    def __init__(self):
        self.started, self.rows, self.finished, self.refuses = [], {}, 0, False

    def init(self, **options):
        if self.refuses:
            raise self.Error("no such project")
        self.started.append(options)
        return SimpleNamespace(log=self.log, finish=self.finish)

    def log(self, values, step):
        if step >= max(self.rows, default=0):
            self.rows.setdefault(step, {}).update(values)

    def finish(self):
        self.finished += 1


def test_weights_and_biases(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(trackers, "_installed", lambda package: package == "wandb")
    config = FinetuneConfig(data="d", out=tmp_path, wandb=True)
    trackers.require_trackers(config)
    first = trackers.Trackers(RunFolder(tmp_path), config, [])
    for step in (1, 2, 3):
        first.add(STEP | {"step": step})
    first.close()
    again = trackers.Trackers(RunFolder(tmp_path), config, [STEP | {"step": 1}, STEP | {"step": 2}])
    for step in (3, 4):
        again.add(STEP | {"step": step})
    again.add(VALIDATION | {"step": 4})
    again.close()
    assert list(fake.rows) == [1, 2, 3, 4] and fake.finished == 2
    assert fake.rows[1] == points(STEP, 8) and fake.rows[4] == points(STEP, 8) | points(VALIDATION, 8)
    one, two = fake.started
    assert one == two and one["resume"] == "allow" and one["name"] == tmp_path.name
    assert one["config"]["alpha"] == 0.7 and not list(tmp_path.glob("*tfevents*"))
    fake.refuses = True
    with pytest.raises(RunError, match="Weights & Biases does not start the run: no such project"):
        trackers.Trackers(RunFolder(tmp_path), config, [])


def test_missing_packages_are_named(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "_installed", lambda package: False)
    for name, message in (
        ("tensorboard", r"tensorboard needs its package: pip install taf_fast\[tensorboard\]"),
        ("wandb", "wandb needs its package: pip install wandb"),
    ):
        config = FinetuneConfig(data=dataset, out=tmp_path / "run", **{name: True})
        with pytest.raises(MissingDependency, match=message):
            finetune(config)
    assert not list(tmp_path.iterdir())
    assert not trackers.Trackers(RunFolder(tmp_path), FinetuneConfig(data="d", out="o"), [])._all
    monkeypatch.undo()
    assert importlib.util.find_spec("tensorboard")
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    with pytest.raises(MissingDependency, match="cannot be imported: .*; --no-tensorboard does without it"):
        trackers.require_trackers(FinetuneConfig(data="d", out="o"))
    trackers.require_trackers(FinetuneConfig(data="d", out="o", tensorboard=False))
