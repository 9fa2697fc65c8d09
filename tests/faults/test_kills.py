"""Kills and storms of signals: whatever ends a command and whenever, the same command then finishes the work,
with the result that it would have had."""

import os
import random
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from faults.commands import campaign, often, result, temporaries
from run_command import finetune_arguments
from sweep.sweep_files import SMALL, START

from taf_fast.files import read_csv

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass
class Job:
    """A command, the folder that it writes in, and what it leaves there, to compare."""

    arguments: list
    folder: Path
    left: callable


def bytes_of(*names):
    return lambda folder: {name: (folder / name).read_bytes() for name in names}


def tensors(folder):
    content = torch.load(folder / "converted.pth", weights_only=True)["state_dict"]
    return {name: tensor.numpy().tobytes() for name, tensor in content.items()}


def sweep_results(folder):
    # The states name the file of the weights that a run started from, in this folder.
    found: dict = {
        path.parent.relative_to(folder): result(path.parent) | {"state.safetensors": None}
        for path in folder.rglob("config.yaml")
    }
    tables = [*(folder / name for name in ("runs.csv", "table.csv")), *folder.rglob("attention.csv")]
    for path in tables:
        found[path.relative_to(folder)] = [
            [text for name, text in row.items() if not name.startswith(("seconds_", "folder", "checkpoint"))]
            for row in read_csv(path)
        ]
    return found


def job_of(name, folder, dataset, whole, options) -> Job:
    """The command ``name``, which works in ``folder``."""
    folder.mkdir(parents=True)
    weights = whole / "model.safetensors"
    if name.startswith("finetune"):
        arguments = [*finetune_arguments(dataset, folder / "run", **options), "--resume"]
        arguments += ["--workers", 2] if name.endswith("workers") else []
        return Job(arguments, folder, lambda folder: result(folder / "run"))
    if name.startswith("scan"):
        workers = name.removeprefix("scan in ")
        arguments = ["scan", "--data", dataset, "--manifest", folder / "manifest", "--workers", workers]
        return Job(arguments, folder, bytes_of("manifest"))
    if name == "cache":
        arguments = ["scan", "--data", dataset, "--manifest", folder / "manifest", "--workers", 1]
        names = ("manifest", "cache/taf_fast_cache.jsonl", "cache/frames-00000.jpegs")
        return Job([*arguments, "--cache", folder / "cache"], folder, bytes_of(*names))
    if name == "sweep":
        plan = SMALL | {"values": {"batch_size": 8, "epochs": 1, "lr": 0.01}, "arms": {"TAF": {}}}
        plan |= {"start": START | {"augment": "none", "epochs": 1, "batch_size": 12}}
        (folder / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
        arguments = ["sweep", folder / "plan.yaml", "--data", dataset, "--out", folder / "sweep"]
        return Job([*arguments, "--device", "cpu"], folder, lambda folder: sweep_results(folder / "sweep"))
    if name == "convert":
        arguments = ["convert", weights, folder / "converted.pth", "--to", "official"]
        return Job(arguments, folder, tensors)
    return Job(["report", whole, "--out", folder / "page.html"], folder, bytes_of("page.html"))


NAMES = ("finetune", "finetune in workers", "scan in 1", "scan in 2", "cache", "sweep", "convert", "report")
FEW = ("finetune", "scan in 1", "convert")


def went_on(commands, job, expected):
    """The same command finishes, and leaves no temporary file, not even of a process that was killed."""
    commands.succeed(job.arguments)
    assert job.left(job.folder) == expected
    assert not temporaries(job.folder)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(often(1, 5)))
@pytest.mark.parametrize("name", often(FEW, NAMES))
def test_a_kill_at_a_step_of_writing(
    fault, commands, finished, dataset, whole, options, tmp_path, name, seed
):
    expected, steps, _ = finished(name)
    job, draw = job_of(name, tmp_path / "work", dataset, whole, options), random.Random(f"{name} {seed}")
    with fault(f"kill before a step of writing: {name}"):
        ended = commands.run(job.arguments, folder=job.folder, at=draw.randint(1, steps), signal=9)
        assert ended.status == -9, ended
        went_on(commands, job, expected)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(often(1, 5)))
@pytest.mark.parametrize("name", often(FEW[1:], NAMES))
def test_a_signal_at_a_step_of_writing(
    fault, commands, finished, dataset, whole, options, tmp_path, name, seed
):
    expected, steps, _ = finished(name)
    job, draw = job_of(name, tmp_path / "work", dataset, whole, options), random.Random(f"{name} {seed}")
    with fault(f"signal before a step of writing: {name}"):
        ended = commands.run(
            job.arguments, folder=job.folder, at=draw.randint(1, steps), signal=draw.choice(STOPS)
        )
        assert ended.status is not None and "Traceback" not in ended.errors, ended
        went_on(commands, job, expected)


@pytest.mark.slow
@campaign
@pytest.mark.parametrize("seed", range(often(1, 5)))
@pytest.mark.parametrize("name", often(FEW[:1], NAMES))
def test_kills_and_storms_at_random_times(
    fault, commands, finished, dataset, whole, options, tmp_path, name, seed
):
    """Up to five signals, of which SIGKILL ends it all."""
    expected, _, seconds = finished(name)
    job, draw = job_of(name, tmp_path / "work", dataset, whole, options), random.Random(f"{name} {seed}")
    with fault(f"kills and storms at random times: {name}"):
        process = commands.start(job.arguments)
        time.sleep(draw.uniform(0, seconds))
        for _ in range(draw.randint(1, 5)):
            try:
                os.killpg(process, draw.choice((*STOPS, signal.SIGKILL)))
            except ProcessLookupError:
                break
            time.sleep(draw.choice((0, 0.01, 0.1)))
        ended = commands.wait(process)
        assert ended.status is not None and "Traceback" not in ended.errors, ended
        went_on(commands, job, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convert", "report"])
def test_what_was_there_stays_until_it_is_replaced(
    fault, commands, finished, dataset, whole, options, tmp_path, name
):
    """Killed before every step of writing in turn."""
    expected, steps, _ = finished(name)
    for at in range(1, 1 + min(steps, often(3, 50))):
        job = job_of(name, tmp_path / str(at), dataset, whole, options)
        (file,) = (part for part in job.arguments if isinstance(part, Path) and part.parent == job.folder)
        file.write_bytes(b"earlier")
        with fault(f"earlier file of a killed command: {name}"):
            commands.run(job.arguments, folder=job.folder, at=at, signal=9)
            assert file.read_bytes() == b"earlier" or job.left(job.folder) == expected
        shutil.rmtree(job.folder)
