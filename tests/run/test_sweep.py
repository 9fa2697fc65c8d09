"""Sweeps: the runs that a file means, runs that are stopped, killed and damaged, and what the tables say."""

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
import yaml
from run_command import command, output_of

from taf_fast import models
from taf_fast.files import read_csv
from taf_fast.report.attention import attention_rows
from taf_fast.run.config import FinetuneConfig
from taf_fast.run.metrics import read_metrics
from taf_fast.run.stopping import StopRequest
from taf_fast.run.sweep import run_sweep
from taf_fast.run.sweep_plan import NAMES, Run, Sweep, read_sweep
from taf_fast.run.sweep_table import student_t, write_tables

GIVEN = dict(data="videos", out="sweep", checkpoint=None)
START = {"model": "tsm_resnet18", "size": 32}

# Runs of seconds: 24 clips, 6 steps an epoch.
SMALL = {
    "values": {"batch_size": 4, "epochs": 2, "lr": 0.01},
    "start": START | {"augment": "none", "epochs": 1},
    "arms": {"plain": {"augment": "none"}, "TAF": {}},
    "measure": ["attention"],
}
FOLDERS = [f"{arm}/seed{seed}" for seed in (0, 1) for arm in ("start", "plain", "TAF")]


def write(folder: Path, content) -> Path:
    path = folder / "mine.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


def planned(folder: Path, content, **given) -> Sweep:
    return read_sweep(str(write(folder, content)), GIVEN | given)


def arguments(file: Path, data: Path, out: Path, *more) -> list:
    return ["sweep", file, "--data", data, "--out", out, "--device", "cpu", *more]


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """By file what changes when it is written again."""
    found = {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*") if path.is_file()}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


def test_arms_times_grid_times_seeds_seed_by_seed(tmp_path):
    (tmp_path / "own.yaml").write_text("base: [taf, tsm]\nlr: 0.5\nbatch_size: 16\n")
    content = """
        base: own.yaml
        values: {epochs: 4, lr: 0.25, lr_steps: [2, 3], size: 64}
        seeds: [3, 1]
        start: {augment: none, lr: 0.125, model: gst_resnet18}
        arms:
          plain: {augment: none, model: gst_resnet18}
          1/2: {alpha: 0.5, epochs: 2, model: gst_resnet18}
        grid:
          epsilon: [8/255, 0.5]
          lr_steps: [[1], []]
        measure: [attention]
    """
    sweep = planned(tmp_path, content, threads=3)
    assert sweep.measure == ("attention",)
    expected = []
    for seed in (3, 1):
        expected.append(("start", {}, f"sweep/start/seed{seed}", seed, None, "none", 4, 0.125, 0.7, (2, 3)))
        checkpoint = f"sweep/start/seed{seed}/model.safetensors"
        for arm, folder, *values in (
            ("plain", "plain", "none", 4, 0.25, 0.7),
            ("1/2", "1_2", "ta", 2, 0.25, 0.5),
        ):
            for epsilon, epsilon_folder in (("8/255", "8_255"), ("0.5", "0.5")):
                for text, lr_steps in (("[1]", (1,)), ("[]", ())):
                    out = f"sweep/{folder}/epsilon={epsilon_folder},lr_steps={text}/seed{seed}"
                    point = {"epsilon": epsilon, "lr_steps": text}
                    expected.append((arm, point, out, seed, checkpoint, *values, lr_steps))
    found = [
        (r.arm, r.point, c.out, c.seed, c.checkpoint, c.augment, c.epochs, c.lr, c.alpha, c.lr_steps)
        for r in sweep.runs
        for c in [r.config]
    ]
    assert found == expected
    assert {run.point.get("epsilon"): run.config.epsilon for run in sweep.runs} == {
        **{None: 64 / 255, "8/255": 8 / 255, "0.5": 0.5}
    }
    for run in sweep.runs:
        shared = ("videos", 3, 16, 64, "gst_resnet18")
        assert (
            run.config.data,
            run.config.threads,
            run.config.batch_size,
            run.config.size,
            run.config.model,
        ) == shared
    assert str(sweep.runs[2]) == "plain, epsilon 8/255, lr_steps [], seed 3"


def test_what_the_checkpoint_is_comes_from_the_start(tmp_path):
    """Model, frames and size, unless the values say otherwise."""
    content = {
        "start": START | {"num_segments": 4},
        "grid": {"size": [32, 48]},
        "values": {"num_segments": 16},
    }
    runs = planned(tmp_path, content).runs
    assert [(r.config.model, r.config.num_segments, r.config.size, r.config.out) for r in runs] == [
        ("tsm_resnet18", 4, 32, "sweep/start/seed0"),
        ("tsm_resnet18", 16, 32, "sweep/size=32/seed0"),
        ("tsm_resnet18", 16, 48, "sweep/size=48/seed0"),
    ]


TABLES = {
    "table2a": ("augment", ["none", "ce", "ta"]),
    "table2b": ("alpha", [0.2, 0.5, 0.7, 0.8]),
    "table2c": ("epsilon step_size steps", [(e, s, k) for e, s in ((6, 2), (64, 32)) for k in (1, 3)]),
    "table4": ("augment", ["noise", "mixup", "cutmix", "framemixup", "cubemixup", "ta"]),
    "table6a": ("num_frames", [2, 4, 8]),
    "table6b": ("composition", ["all", "wrong", "correct"]),
}


def test_the_paper_s_tables_are_there():
    assert set(NAMES) == set(TABLES)


@pytest.mark.parametrize("name", NAMES)
def test_the_paper_s_tables(tmp_path, name):
    """Three trials of what a table compares, and nothing else differs from the recipe."""
    checkpoint = tmp_path / "tsm.pth"
    torch.save(models.export(models.build("tsm_resnet50", 174), "official"), checkpoint)
    runs = read_sweep(name, GIVEN | {"checkpoint": str(checkpoint)}).runs
    varied, rows = TABLES[name][0].split(), TABLES[name][1]
    scale = {"epsilon": 255, "step_size": 255}
    found = [(run.config.seed, *(getattr(run.config, v) * scale.get(v, 1) for v in varied)) for run in runs]
    expected = [(seed, *(row if isinstance(row, tuple) else (row,))) for seed in (0, 1, 2) for row in rows]
    for one, other in zip(found, expected, strict=True):
        assert one == (pytest.approx(other) if name == "table2c" else other)
    recipe = yaml.safe_load((Path(models.__file__).parents[1] / "recipes/base/taf.yaml").read_text())
    for run in runs:
        config = run.config
        assert (config.model, config.num_segments, config.dataset) == ("tsm_resnet50", 8, "ssv1")
        assert config.checkpoint == str(checkpoint)
        for key in {"epochs", "alpha", "steps", "num_frames", "size"} - set(varied):
            assert getattr(config, key) == recipe[key]


def test_the_documentation_s_files(tmp_path):
    pages = Path(__file__).parents[2] / "docs/sweeps.md"
    first, second = re.findall(r"```yaml\n(.*?)```", pages.read_text(encoding="utf-8"), re.DOTALL)
    weights = tmp_path / "tsm.pth"
    torch.save(models.export(models.build("tsm_resnet18", 8), "official"), weights)
    assert len(planned(tmp_path, first, checkpoint=str(weights)).runs) == 9
    assert len(planned(tmp_path, second).runs) == 2 * (1 + 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("[1, 2]", "mine.yaml must be a mapping of names to values, got list"),
        ("a: [1", "mine.yaml is no YAML file"),
        ("start: {}\ngrid: {alpha: [2020-01-01]}", "alpha must be float, got datetime.date(2020, 1, 1)"),
        ({"arm": {}}, "unknown keys: arm, expected some of base, values, seeds"),
        ({"arms": {}}, "nothing to compare, expected arms or a grid"),
        ({"arms": ["a"]}, "arms must be a mapping, got ['a']"),
        ({"values": None}, "values must be a mapping, got None"),
        ({"base": ["tsm"]}, "base must be the name of a recipe or a YAML file, got ['tsm']"),
        ({"base": "tsm"}, "no recipe 'tsm'"),
        ({"base": "none.yaml"}, "none.yaml does not exist"),
        ({"seeds": []}, "seeds must be whole numbers of at least 0, got []"),
        ({"seeds": [0, True]}, "seeds must be whole numbers of at least 0, got [0, True]"),
        ({"seeds": [-1]}, "seeds must be whole numbers of at least 0, got [-1]"),
        ({"seeds": 3}, "seeds must be a list, got 3"),
        ({"seeds": [0, 0]}, "start, seed 0 and start, seed 0 would share the folder"),
        ({"measure": ["speed"]}, "measure must be some of robustness, attention, got 'speed'"),
        ({"values": {"threads": 3}}, "values has unknown keys: threads"),
        ({"values": {"seed": 3}}, "values has a seed, expected in seeds"),
        ({"start": {"epsilon": "1/0"}}, "start: epsilon must be a number or a fraction as 64/255, got '1/0'"),
        ({"arms": {"a": {}, "b": {"beta": 1}}}, "b has unknown keys: beta"),
        ({"arms": {"a": None}}, "a must be a mapping of names to values, got None"),
        ({"arms": {1: {}}}, "1 is no name of an arm"),
        ({"arms": {"start": {}}}, "'start' is no name of an arm"),
        ({"arms": {"..": {}}}, "'..' is no name of an arm"),
        ({"arms": {"a/b": {}, "a_b": {}}}, "a/b, seed 0 and a_b, seed 0 would share the folder"),
        ({"arms": {"a": {}, "b": {"alpha": 2}}}, "b: alpha must be between 0 and 1, got 2"),
        ({"arms": {"a": {}, "b": {"lr": "1e-4"}}}, "b: lr must be float, got '1e-4' (YAML takes"),
        ({"arms": {"b": {"model": "gst_resnet18"}}}, "b, seed 0: model must be that of the checkpoint"),
        ({"grid": {"alpha": 0.5}}, "alpha in the grid must be a list of values, got 0.5"),
        ({"grid": {"alpha": []}}, "alpha in the grid must be a list of values, got []"),
        ({"grid": {"alpha": [0.5, 0.5]}}, "would share the folder"),
        ({"grid": {"alpha": [0.5, 7]}}, "plain, alpha=7: alpha must be between 0 and 1, got 7"),
        ({"grid": {"seed": [1]}}, "grid has a seed, expected in seeds"),
        ({"grid": {"augment": ["ta"]}}, "augment is in plain and in the grid, expected in one"),
    ],
    ids=str,
)  # fmt: skip
def test_impossible_files(dataset, tmp_path, error, changes, message):
    file = write(tmp_path, changes if isinstance(changes, str) else SMALL | changes)
    found = error(*arguments(file, dataset, tmp_path / "out"))
    assert message in found, found
    assert not (tmp_path / "out").exists()


def test_impossible_commands(dataset, tmp_path, error):
    out, file = tmp_path / "out", write(tmp_path, SMALL)
    without = tmp_path / "without.yaml"
    without.write_text(yaml.safe_dump({"arms": SMALL["arms"]}))
    weights = tmp_path / "tsm.pth"
    torch.save(models.export(models.build("tsm_resnet50", 8), "official"), weights)
    one = "expected either a start, which makes the checkpoint, or --checkpoint"
    assert one in error(*arguments(file, dataset, out, "--checkpoint", weights))
    assert one in error(*arguments(without, dataset, out))
    assert "none.pth does not exist" in error(*arguments(without, dataset, out, "--checkpoint", "none.pth"))
    assert "no sweep 'table9', expected a YAML file or one of table2a," in error(
        *arguments("table9", dataset, out)
    )
    assert "absent.yaml does not exist" in error(*arguments("absent.yaml", dataset, out))
    # The recipe's data are others.
    message = error(*arguments("table2a", dataset, out, "--checkpoint", weights))
    assert "holds ssv2, expected ssv1" in message
    assert not out.exists()


def fabricated(folder: Path, arm: str, seed: int, values: np.ndarray, clean: list[list[float]] | None) -> Run:
    """A finished run of these top-1, top-5, loss, share and seconds, and these losses of steps by epoch."""
    run = Run(arm, {}, FinetuneConfig(data="d", out=str(folder / arm / f"seed{seed}"), seed=seed))
    run.folder.mkdir(parents=True)
    top1, top5, loss, share, seconds = values.tolist()
    evaluation = {"top1": top1, "top5": top5, "loss": loss, "clips": 10}
    result = {"evaluation": evaluation, "attacked_share": share, "seconds_per_step": seconds}
    (run.folder / "result.json").write_text(json.dumps(result))
    (run.folder / "model.safetensors").touch()
    with (run.folder / "metrics.jsonl").open("w") as file:
        for epoch, losses in enumerate(clean or [[None]]):
            for value in losses:
                print(
                    json.dumps({"epoch": epoch, "loss": 9} | ({"clean_loss": value} if value else {})),
                    file=file,
                )
            print(json.dumps({"epoch": epoch, "val_loss": 9}), file=file)
    return run


def test_statistics_of_runs(tmp_path, seed):
    """Against NumPy and SciPy: arms of any number of seeds, not all the same ones, and of none."""
    random = np.random.default_rng(seed)
    names = ["top1", "top5", "val_loss", "attacked_share", "seconds_per_step"]
    seeds = {
        "start": range(7),
        "first": [0, 1, 2, 4, 6],
        "second": [1, 2, 3, 6],
        "one": [4],
        "unpaired": [3, 5],
    }
    values = {arm: random.random((len(s), 5)) for arm, s in seeds.items()}
    clean = {arm: random.uniform(1, 2, (len(s), 2, 3)) for arm, s in seeds.items() if arm != "second"}
    runs = [
        fabricated(tmp_path, arm, s, values[arm][i], clean[arm][i].tolist() if arm in clean else None)
        for arm in seeds
        for i, s in enumerate(seeds[arm])
    ]
    unfinished = [Run("never", {}, FinetuneConfig(data="d", out=str(tmp_path / "never/seed0")))]
    table = write_tables(tmp_path, Sweep((*runs, *unfinished), ("attention",)))

    each = read_csv(tmp_path / "runs.csv")
    assert [(row["arm"], int(row["seed"]), row["folder"]) for row in each] == [
        (run.arm, run.config.seed, str(run.folder)) for run in runs
    ]
    rows = {row["arm"]: row for row in read_csv(tmp_path / "table.csv")}
    assert list(rows) == list(seeds)

    def check(row, name, samples):
        count = len(samples)
        expected = ["", "", ""]
        if count:
            expected[0] = np.mean(samples)
        if count > 1:
            half = scipy.stats.t.interval(0.95, count - 1, 0, scipy.stats.sem(samples))[1]
            expected[1:] = np.std(samples, ddof=1), half
        for key, value in zip((name, f"{name}_std", f"{name}_ci95"), expected, strict=True):
            assert row[key] == value if value == "" else float(row[key]) == pytest.approx(value, rel=1e-9), (
                key
            )

    for arm, row in rows.items():
        assert int(row["seeds"]) == len(seeds[arm])
        for column, name in enumerate(names):
            check(row, name, values[arm][:, column])
        check(row, "train_loss", clean[arm][:, 1].mean(1) if arm in clean else [])
        first = dict(zip(seeds["first"], values["first"][:, 0], strict=True))
        own = dict(zip(seeds[arm], values[arm][:, 0], strict=True))
        shared = sorted(set(first) & set(own)) if arm != "first" else []
        check(row, "top1_difference", [own[s] - first[s] for s in shared])

    cells = {column.header: list(column.cells) for column in table.columns}
    assert cells[""] == list(seeds) and cells["seeds"] == ["7", "5", "4", "1", "2"]
    top1 = values["start"][:, 0]
    assert cells["top-1 %"][0] == f"{100 * top1.mean():.1f} ± {100 * top1.std(ddof=1):.1f}"
    assert cells["top-1 %"][3] == f"{100 * values['one'][0, 0]:.1f}"
    difference = values["one"][0, 0] - first[4]
    assert cells["difference"][1::2] == ["", f"{100 * difference:+.1f}"]
    row = rows["start"]
    mean, half = (100 * float(row[f"top1_difference{ending}"]) for ending in ("", "_ci95"))
    assert cells["difference"][0] == f"{mean:+.1f} ± {half:.1f}"


@pytest.mark.parametrize("freedom", [*range(1, 31), 99, 100, 1001])
def test_quantiles_of_student_s_distribution(freedom):
    assert student_t(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=1e-9)


def test_a_wish_to_stop_at_the_end_of_a_run_is_heard(tmp_path, monkeypatch, capsys):
    """When there is nothing left for the training loop to stop."""
    sweep, begun = planned(tmp_path, SMALL, out=str(tmp_path / "out")), []

    def finetune(config, **_):
        begun.append(config.out)
        with StopRequest():
            os.kill(os.getpid(), signal.SIGTERM)
        fabricated(tmp_path / "out", "start", 0, np.full(5, 0.5), None)
        return "a result"

    monkeypatch.setattr("taf_fast.run.sweep.finetune", finetune)
    before = signal.getsignal(signal.SIGTERM)
    assert not run_sweep(tmp_path / "out", sweep, {})
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
            assert run_sweep(out, sweep, {"attention": attention_rows})
        printed.append(stream.getvalue())
        after = state(out)
        assert before.items() <= after.items()
        before = {name: stat for name, stat in after.items() if "seed" in name}
    return out, printed


def test_another_seed_runs_alone(finished):
    out, (first, second) = finished
    assert "start, seed 0: training (1 of 3)" in first and "TAF, seed 0: attention (3 of 3)" in first
    assert "±" not in first and "seed 0: " not in second
    assert second.count(": training") == 3 and second.count(": attention") == 3 and "±" in second
    assert sorted(str(path.parent.relative_to(out)) for path in out.rglob("result.json")) == sorted(FOLDERS)


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
            predictions = np.genfromtxt(folder / "predictions.csv", delimiter=",", skip_header=1)
            metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            steps = [line for line in metrics if "loss" in line]
            attention = np.genfromtxt(
                folder / "attention.csv", delimiter=",", names=True, dtype=None, encoding=None
            )
            found[arm, seed] = {
                "top1": np.mean(predictions[:, 1] == predictions[:, 2]),
                "val_loss": predictions[:, 4].mean(),
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


def test_two_ranks(finished, dataset, tmp_path):
    """Both come to the end, and one of them writes and prints."""
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
    changed = {name for name, stat in state(out).items() if before[name] != stat}
    assert {str(Path(name).parent) for name in changed} == {".", "plain/seed0", "TAF/seed1"}
