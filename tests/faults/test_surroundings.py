"""What a command finds around it: streams that are closed, odd environments, few descriptors, and files and
folders that others change while it works. It does its work, or ends with one error and loses nothing."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults.commands import SECONDS, Ended, campaign, often, result, temporaries
from run_command import command, finetune_arguments


def in_shell(line: str, folder: Path, *arguments, **environment) -> Ended:
    """Run ``line`` in a shell, in which "$@" is the command."""
    variables = {name: text for name, text in (os.environ | environment).items() if text is not None}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line, "bash", *command(*arguments)],
        cwd=folder,
        env=variables | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


STREAMS = {
    "all closed": '"$@" <&- >&- 2>&-',
    "stdin closed": '"$@" <&-',
    "stdout closed": '"$@" >&-',
    "stderr closed": '"$@" 2>&-',
    "a reader that ends": '"$@" | head -n 1',
    "a full disk": '"$@" > /dev/full',
    "few descriptors": 'ulimit -n 30; "$@"',
}
ENVIRONMENTS = {
    "narrow": {"COLUMNS": "1", "LINES": "1"},
    "plain": {"LANG": "C", "LC_ALL": "C", "TERM": "dumb"},
    "homeless": {"HOME": None, "TMPDIR": "/nonexistent"},
}


def jobs(dataset, whole, out):
    """Commands, and the file that each of them leaves if it has done its work."""
    of_model = ["--data", dataset, "--checkpoint", whole / "model.safetensors", "--device", "cpu"]
    return {
        "finetune": (
            finetune_arguments(dataset, out, epochs=1, batch_size=8, checkpoint_every=1),
            out / "result.json",
        ),
        "finetune in workers": (
            [*finetune_arguments(dataset, out, epochs=1, batch_size=8, checkpoint_every=1), "--workers", 2],
            out / "result.json",
        ),
        "scan": (["scan", "--data", dataset, "--manifest", out, "--workers", 2], out),
        "evaluate": (["evaluate", *of_model, "--out", out], out),
        "attention": (["attention", *of_model, "--out", out.with_suffix(".png")], out.with_suffix(".png")),
        "report": (["report", whole, "--out", out], out),
        "recipes": (["recipes"], None),
    }


NAMES = ("finetune", "finetune in workers", "scan", "evaluate", "attention", "report", "recipes")


@pytest.mark.slow
@pytest.mark.parametrize("streams", often(("a reader that ends",), tuple(STREAMS)))
@pytest.mark.parametrize("name", often(("recipes",), NAMES))
def test_streams(fault, dataset, whole, tmp_path, name, streams):
    arguments, left = jobs(dataset, whole, tmp_path / "out")[name]
    with fault(f"streams: {streams}"):
        ended = in_shell(STREAMS[streams], tmp_path, *arguments)
        if ended.held():
            assert left is None or left.exists()
        else:
            refused = "Too many open files" if streams == "few descriptors" else "stdout cannot be written"
            assert refused in ended.errors, ended.errors
        assert not temporaries(tmp_path)
        if name.startswith("finetune") and not ended.held():
            assert in_shell('"$@"', tmp_path, *arguments, "--resume").held()
            assert result(tmp_path / "out").keys() == result(whole).keys()


@pytest.mark.slow
@campaign
@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("name", NAMES)
def test_environments(fault, dataset, whole, tmp_path, name, environment):
    arguments, left = jobs(dataset, whole, tmp_path / "\u00e9 \u4e2d")[name]
    with fault(f"environment: {environment}"):
        assert in_shell('"$@"', tmp_path, *arguments, **ENVIRONMENTS[environment]).held()
        assert left is None or left.exists()


@pytest.mark.slow
@campaign
@pytest.mark.parametrize("change", ["removed", "renamed"])
@pytest.mark.parametrize("seed", range(often(1, 3)))
def test_a_folder_that_goes_while_a_run_works(
    fault, commands, dataset, whole, options, tmp_path, change, seed
):
    out, moved = tmp_path / "run", tmp_path / "moved"
    with fault(f"folder {change} while a run works"):
        process = commands.start(finetune_arguments(dataset, out, **options))
        while not (out / "state.safetensors").exists():
            time.sleep(0.01)
        time.sleep(0.2 * seed)
        if change == "removed":
            shutil.rmtree(out, ignore_errors=True)
        else:
            out.rename(moved)
        if commands.wait(process).held():
            assert (moved if moved.exists() else out).is_dir()
        if moved.exists() and not (moved / "model.safetensors").exists():
            shutil.rmtree(out, ignore_errors=True)
            moved.rename(out)
            commands.succeed([*finetune_arguments(dataset, out, **options), "--resume"])
            assert result(out) == result(whole)


@pytest.mark.slow
@campaign
@pytest.mark.parametrize("name", ["state.safetensors", "metrics.jsonl", "config.yaml"])
def test_files_of_another_run(fault, commands, dataset, half, options, tmp_path, name):
    """Of a run that differs in its learning rate alone."""
    other, out = tmp_path / "other", shutil.copytree(half, tmp_path / "run")
    commands.succeed(finetune_arguments(dataset, other, **options, lr=0.02))
    shutil.copy(other / name, out)
    before = {path.name: path.read_bytes() for path in out.glob("[!.]*") if path.suffix != ".lock"}
    with fault(f"{name} of another run"):
        assert not commands.run([*finetune_arguments(dataset, out, **options), "--resume"]).held()
        assert {name: (out / name).read_bytes() for name in before} == before


@pytest.mark.slow
@campaign
@pytest.mark.parametrize("change", ["removed", "other", "empty", "a folder", "a pipe"])
def test_clips_that_change_between_scan_and_training(fault, commands, dataset, options, tmp_path, change):
    """A few do: the run leaves them out, with a reason, or takes what is there now."""
    data, out = shutil.copytree(dataset, tmp_path / "data"), tmp_path / "run"
    arguments = [*finetune_arguments(data, out, **options | {"epochs": 3}), "--quarantine-limit", 0.5]
    clips = sorted(data.rglob("*.webm"))
    with fault(f"clips that become {change} in a run"):
        process = commands.start(arguments)
        while not (out / "state.safetensors").exists():
            time.sleep(0.01)
        for clip in clips[::8]:
            clip.unlink()
            if change == "other":
                shutil.copy(clips[1], clip)
            elif change == "empty":
                clip.touch()
            elif change == "a folder":
                clip.mkdir()
            elif change == "a pipe":
                os.mkfifo(clip)
        assert commands.wait(process).held()


@pytest.mark.slow
@campaign
@pytest.mark.parametrize(
    "numbers", ["INT TERM", "HUP TERM", "TERM INT HUP", "HUP", "PIPE", "QUIT", "USR1", "STOP CONT"]
)
def test_signals_in_any_order(fault, commands, dataset, whole, options, tmp_path, numbers):
    out = tmp_path / "run"
    arguments = finetune_arguments(dataset, out, **options)
    with fault("signals in any order"):
        process = commands.start(arguments)
        while not (out / "state.safetensors").exists():
            time.sleep(0.01)
        for name in numbers.split():
            try:
                os.kill(process, getattr(signal, f"SIG{name}"))
            except ProcessLookupError:
                break
            time.sleep(0.05)
        ended = commands.wait(process)
        assert ended.status is not None and "Traceback" not in ended.errors, ended
        commands.succeed([*arguments, "--resume"])
        assert result(out) == result(whole) and not temporaries(out)
