"""A full disk, as a limit on the size of files: one error that names the file, and nothing left over."""

import resource
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from run_command import command, finetune_arguments

from taf_fast import models


def limited(size: int, *arguments) -> str:
    """The error of a command in whose folder no file can be larger than ``size`` bytes."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, preexec_fn=limit)
    assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr
    assert done.stderr.count("\n") == 1
    return done.stderr


def temporaries(folder: Path) -> list[Path]:
    return list(folder.rglob(".*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 1000, 10**6])
def test_convert(tmp_path, size):
    weights, out = tmp_path / "w.pth", tmp_path / "out.pth"
    torch.save(models.export(models.build("tsm_resnet18", 8), "official"), weights)
    out.write_text("before")
    found = limited(size, "convert", weights, out, "--to", "mmaction2")
    assert f"{out} cannot be written: File too large" in found
    assert out.read_text() == "before" and not temporaries(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "file"), [(1300, "metrics.jsonl"), (10**5, "state.safetensors")])
def test_finetune(dataset, tmp_path, size, file):
    found = limited(size, *finetune_arguments(dataset, tmp_path / "run", epochs=1))
    assert f"{tmp_path / 'run' / file} cannot be written: " in found
    assert not temporaries(tmp_path)


@pytest.mark.slow
def test_data(dataset, tmp_path):
    assert f"{tmp_path / 'm'} cannot be written: File too large" in limited(
        100, "scan", "--data", dataset, "--manifest", tmp_path / "m"
    )
    for size in (100, 3000):
        out = tmp_path / f"synth{size}"
        assert str(out) in limited(size, "synth", out, "--train-per-class", 1, "--val-per-class", 1)
    cache, manifest = tmp_path / "cache", tmp_path / "manifest"
    assert f"{cache} cannot be written: File too large" in limited(
        20_000, "scan", "--data", dataset, "--manifest", manifest, "--cache", cache, "--workers", 1
    )


@pytest.mark.slow
def test_pictures_and_tables(runs, tmp_path):
    for size in (100, 1000):
        for name, arguments in (
            ("curves", ["--out", tmp_path / "c.png"]),
            ("report", ["--out", tmp_path / "r"]),
        ):
            assert "cannot be written: File too large" in limited(size, name, runs[0], *arguments)
    assert not temporaries(tmp_path)
