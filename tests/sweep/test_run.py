"""Sweeps that run, and that are stopped, killed, damaged and continued."""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from run_command import command, output_of
from sweep.sweep_files import SMALL, arguments, fabricated, planned, write

from taf_fast.files import read_csv
from taf_fast.process.stopping import StopRequest
from taf_fast.run.metrics import read_metrics
from taf_fast.sweep.run import run_sweep

FOLDERS = [f"{arm}/seed{seed}" for seed in (0, 1) for arm in ("start", "plain", "TAF")]


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """By file what changes when it is written again."""
    found = {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*") if path.is_file()}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


def test_a_wish_to_stop_at_the_end_of_a_run_is_heard(tmp_path, monkeypatch, capsys):
    """A stop after the training loop has ended."""
    sweep, begun = planned(tmp_path, SMALL, out=str(tmp_path / "out")), []

    def finetune(config, **_):
        begun.append(str(config.out))
        with StopRequest():
            os.kill(os.getpid(), signal.SIGTERM)
        fabricated(tmp_path / "out", "start", 0, np.full(5, 0.5), None)
        return "a result"

    monkeypatch.setattr("taf_fast.sweep.run.finetune", finetune)
    before = signal.getsignal(signal.SIGTERM)
    assert not run_sweep(tmp_path / "out", sweep)
    assert begun == [str(tmp_path / "out/start/seed0")]
    assert capsys.readouterr().out.endswith("stopped; the same command goes on from here\n")
    assert signal.getsignal(signal.SIGTERM) == before
    assert [row["arm"] for row in read_csv(tmp_path / "out/table.csv")] == ["start"]


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
    """The sweep without interruptions, for one seed and then with another; and what it printed each time."""
    root = tmp_path_factory.mktemp("sweep")
    out, printed, before = root / "out", [], {}
    for seeds in ([0], [0, 1]):
        given = dict(data=str(dataset), out=str(out), checkpoint=None)
        sweep = planned(root, SMALL | {"seeds": seeds}, **given)
        with contextlib.redirect_stdout(io.StringIO()) as stream:
            assert run_sweep(out, sweep)
        printed.append(stream.getvalue())
        after = state(out)
        assert before.items() <= after.items()
        before = {name: stat for name, stat in after.items() if "seed" in name}
    return out, printed


@pytest.mark.slow
def test_another_seed_runs_alone(finished):
    out, (first, second) = finished
    assert "start, seed 0: training (1 of 3)" in first and "TAF, seed 0: attention (3 of 3)" in first
    assert "±" not in first and "seed 0: " not in second
    assert second.count(": training") == 3 and second.count(": attention") == 3 and "±" in second
    assert sorted(str(path.parent.relative_to(out)) for path in out.rglob("result.json")) == sorted(FOLDERS)


@pytest.mark.slow
def test_runs_are_those_of_finetune(finished, dataset, tmp_path, capsys, monkeypatch):
    out, _ = finished
    start = out / "start/seed1/model.safetensors"
    options = ["--checkpoint", start, "--batch-size", 4, "--epochs", 2, "--lr", 0.01, "--seed", 1]
    alone = ["finetune", "--data", dataset, "--out", tmp_path / "run", "--device", "cpu", *options]
    output_of(capsys, monkeypatch, *alone)
    assert (tmp_path / "run/model.safetensors").read_bytes() == (
        out / "TAF/seed1/model.safetensors"
    ).read_bytes()


def test_the_table_is_what_the_runs_files_say(finished):
    out, _ = finished
    rows = {row["arm"]: row for row in read_csv(out / "table.csv")}
    assert list(rows) == ["start", "plain", "TAF"]
    found = {}
    for arm in rows:
        for seed in (0, 1):
            folder = out / arm / f"seed{seed}"
            predictions = read_csv(folder / "predictions.csv")
            metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            steps = [line for line in metrics if "loss" in line]
            attention = np.genfromtxt(
                folder / "attention.csv", delimiter=",", names=True, dtype=None, encoding=None
            )
            found[arm, seed] = {
                "top1": np.mean([row["class"] == row["predicted_class"] for row in predictions]),
                "val_loss": np.mean([float(row["loss"]) for row in predictions]),
                "train_loss": np.mean([line["clean_loss"] for line in steps[-6:]]),
                "attacked_share": sum(line.get("attacked", 0) for line in steps)
                / sum(line["clips"] for line in steps),
                "attention_entropy": attention["entropy"].mean(),
                "attention_top_share": attention["top_share"].mean(),
            }
            assert len(attention) == 8 and set(attention["checkpoint"]) == {str(folder / "model.safetensors")}
    for run in read_csv(out / "runs.csv"):
        for name, value in found[run["arm"], int(run["seed"])].items():
            assert float(run[name]) == pytest.approx(value, rel=1e-6), name
    for arm, row in rows.items():
        for name in found["start", 0]:
            samples = [found[arm, seed][name] for seed in (0, 1)]
            assert float(row[name]) == pytest.approx(np.mean(samples), rel=1e-6)
            assert float(row[f"{name}_std"]) == pytest.approx(np.std(samples, ddof=1), rel=1e-4, abs=1e-6)
    assert float(rows["TAF"]["attacked_share"]) > 0 == float(rows["plain"]["attacked_share"])


def wait_for_steps(folder: Path, process: subprocess.Popen, steps: int) -> None:
    deadline = time.monotonic() + 120
    while sum("loss" in line for line in read_metrics(folder / "metrics.jsonl")) < steps:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_stopped_and_continued_equals_uninterrupted(finished, dataset, tmp_path, output):
    """SIGKILL in mid-epoch, then SIGTERM in another run; bit for bit."""
    reference, out = finished[0], tmp_path / "out"
    call = arguments(write(tmp_path, SMALL), dataset, out)
    process = subprocess.Popen(command(*call), stdout=subprocess.DEVNULL)
    wait_for_steps(out / "plain/seed0", process, 8)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (out / "plain/seed0/result.json").exists()
    before = state(out / "start")
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen(command(*call), **pipes)
    wait_for_steps(out / "TAF/seed0", process, 1)
    process.send_signal(signal.SIGTERM)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and not errors, errors
    assert "start, seed 0" not in printed and "plain, seed 0: training (2 of 3)" in printed
    assert printed.endswith("stopped; the same command goes on from here\n")
    assert [row["arm"] for row in read_csv(out / "runs.csv")] == ["start", "plain"]

    assert "TAF, seed 0: training (3 of 3)" in output(*call)
    assert state(out / "start") == before
    for arm in ("start", "plain", "TAF"):
        for name in ("model.safetensors", "predictions.csv"):
            folder = f"{arm}/seed0"
            assert (out / folder / name).read_bytes() == (reference / folder / name).read_bytes()
    rows = [read_csv(folder / "runs.csv") for folder in (out, reference)]
    for row in rows[0] + rows[1]:
        del row["seconds_per_step"], row["folder"]
    assert rows[0] == [row for row in rows[1] if row["seed"] == "0"]


def test_a_changed_sweep_is_refused_before_anything_is_done(finished, dataset, tmp_path, error):
    out = finished[0]
    before = state(out)
    content = SMALL | {"arms": {"new": {}, "plain": {"augment": "none"}, "TAF": {"alpha": 0.5}}}
    message = error(*arguments(write(tmp_path, content), dataset, out))
    assert f"{out}/TAF/seed0 holds another run than TAF, seed 0: " in message
    assert "alpha: 0.7 there, 0.5 now" in message
    assert state(out) == before


@pytest.mark.slow
def test_measures_and_a_grid_of_one_checkpoint(finished, dataset, tmp_path, output):
    """The numbers are those of the commands, and are not measured twice."""
    weights, out = finished[0] / "start/seed0/model.safetensors", tmp_path / "out"
    values = {"epochs": 1, "batch_size": 8, "augment": "none"}
    content = {"values": values, "grid": {"lr": [0.25]}, "measure": ["robustness", "attention"]}
    call = arguments(write(tmp_path, content), dataset, out, "--checkpoint", weights)
    printed = output(*call)
    assert "lr 0.25, seed 0: robustness (1 of 1)" in printed
    run = out / "lr=0.25/seed0"
    assert yaml.safe_load((run / "config.yaml").read_text())["size"] == 32
    own = ["--data", dataset, "--checkpoint", run / "model.safetensors", "--device", "cpu"]
    output("robustness", *own, "--out", tmp_path / "robustness.csv")
    output("attention", *own, "--measure", tmp_path / "attention.csv")
    for name in ("robustness", "attention"):
        rows = [read_csv(folder / f"{name}.csv") for folder in (run, tmp_path)]
        assert len(rows[0]) == len(rows[1]) >= 8
        for row, other in zip(*rows, strict=True):
            assert list(row) == list(other)
            assert {k: v for k, v in row.items() if k != "checkpoint"} == {
                k: v for k, v in other.items() if k != "checkpoint"
            }
    (table,) = read_csv(out / "table.csv")
    corrupted = [float(r["top1"]) for r in read_csv(run / "robustness.csv") if r["corruption"] != "clean"]
    assert len(corrupted) == 40 and float(table["robustness_top1"]) == pytest.approx(np.mean(corrupted))
    assert (table["arm"], table["lr"], table["seeds"]) == ("", "0.25", "1")
    assert "seed 0: " not in output(*call)


@pytest.mark.slow
def test_two_ranks(finished, dataset, tmp_path):
    """Both ranks finish, and only one of them writes and prints."""
    weights, out = finished[0] / "start/seed0/model.safetensors", tmp_path / "out"
    content = {"values": {"epochs": 1, "batch_size": 24}, "arms": {"TAF": {}, "plain": {"augment": "none"}}}
    file = write(tmp_path, content | {"measure": ["attention"]})
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    group = dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    call = command(*arguments(file, dataset, out, "--checkpoint", weights))
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ranks = [
        subprocess.Popen(call, env=os.environ | group | {"RANK": rank, "LOCAL_RANK": rank}, **pipes)
        for rank in "01"
    ]
    try:
        (printed, errors), second = (rank.communicate(timeout=120) for rank in ranks)
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], (errors, second)
    assert "plain, seed 0: training (2 of 2)" in printed and "wrote " in printed and second == ("", "")
    rows = read_csv(out / "table.csv")
    assert [row["arm"] for row in rows] == ["TAF", "plain"] and all(row["attention_entropy"] for row in rows)
    assert len(read_csv(out / "TAF/seed0/attention.csv")) == 8


@pytest.mark.slow
def test_what_is_damaged_is_made_again(finished, dataset, tmp_path, output):
    out = finished[0]
    remade = ["plain/seed0/result.json", "plain/seed0/model.safetensors", "plain/seed0/attention.csv"]
    remade += ["TAF/seed1/attention.csv"]
    before, contents = state(out), {name: (out / name).read_bytes() for name in remade}
    (out / "plain/seed0/result.json").write_text('{"evaluation": {"top1"')
    (out / "TAF/seed1/attention.csv").write_text("checkpoint,id\nx,1\n")
    (out / "start/seed1/state.safetensors").unlink()  # of no use once a run is finished
    printed = output(*arguments(write(tmp_path, SMALL | {"seeds": [0, 1]}), dataset, out))
    assert [line for line in printed.splitlines() if " of 6)" in line] == [
        "plain, seed 0: training (2 of 6)",
        "plain, seed 0: attention (2 of 6)",
        "TAF, seed 1: attention (6 of 6)",
    ]
    assert {name: (out / name).read_bytes() for name in remade} == contents
    changed = {name for name, stat in state(out).items() if before.get(name) != stat}
    assert {str(Path(name).parent) for name in changed} == {".", "plain/seed0", "TAF/seed1"}
