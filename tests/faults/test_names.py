"""Names of every kind, of folders, files, clips and classes: they work or are refused, and come out as
they are, without acting on the terminal, a page or a table."""

import csv
import json
import os
import shutil

import pytest
from faults.commands import campaign, often, temporaries
from run_command import finetune_arguments

NAMES = {
    "markup": "x[/]",
    "colour": "[red]x",
    "formula": "=1+1",
    "at": "@x",
    "mathematics": "$\\frac{x$",
    "page": "<script>alert(1)</script>".replace("/", "\u2215"),
    "entity": "&lt;b&amp",
    "escape": "\x1b[31mx\x07",
    "lines": "a\nb\r\tc",
    "no text": os.fsdecode(b"\xff\xfe"),
    "right to left": "\u202eabc",
    "not composed": "e\u0301\u0085",
    "long": "x" * 200,
    "emoji": ":smile:\U0001f600",
    "option": "--x",
    "blanks": " x ",
    "percent": "%s%(x)d{0}",
    "quote": "'\"`",
    "backslash": "a\\b\\u0041",
    "star": "*?[a-z]",
    "variable": "$HOME~",
}
FEW = ("escape",)
named = pytest.mark.parametrize("kind", often(FEW, tuple(NAMES)))


# Control characters but tabs and line breaks, and one that turns the text around.
_COMMANDS = set(map(chr, (*range(9), 11, 12, *range(14, 32), 127, 0x85, 0x202E)))


def harmless(ended) -> None:
    """Nothing that a terminal obeys."""
    for text in (ended.printed, ended.errors):
        assert not set(text) & set(
            map(chr, (*range(9), *range(11, 13), *range(14, 32), 127, 0x85, 0x202E))
        ), ended


@pytest.mark.slow
@campaign
@named
def test_folders_and_files(fault, commands, dataset, whole, tmp_path, kind):
    """One name for the data, the run, the checkpoint and what is written."""
    name = NAMES[kind]
    data = shutil.copytree(dataset, tmp_path / "data" / name)
    out, weights = tmp_path / "out", tmp_path / f"{name}.safetensors"
    for path in (out / name, weights):  # a name with a slash is two
        path.parent.mkdir(parents=True, exist_ok=True)
    with fault("names of folders and files"):
        scan = commands.run(["scan", "--data", data, "--workers", 1])
        harmless(scan)
        assert scan.held()
        run = tmp_path / "runs" / name
        trained = commands.run(finetune_arguments(data, run, epochs=1, batch_size=12))
        harmless(trained)
        if not trained.held():  # what JSON and YAML cannot hold
            assert "text" in trained.errors or "character" in trained.errors, trained.errors
            run = shutil.copytree(whole, tmp_path / "runs" / name)
        shutil.copy(run / "model.safetensors", weights)
        for arguments in (
            ["evaluate", "--data", data, "--checkpoint", weights, "--device", "cpu", "--out", out / name],
            ["convert", weights, out / f"{name}.pth", "--to", "official"],
            ["report", run, "--out", out / f"{name}.html"],
        ):
            ended = commands.run(arguments)
            harmless(ended)
            assert ended.held() or "needs a path that is UTF-8" in ended.errors, ended.errors
        if kind != "no text":
            page = (out / f"{name}.html").read_text()
            assert "<script>alert" not in page and "\x1b" not in page
        assert not temporaries(tmp_path)


@pytest.mark.slow
@campaign
@named
def test_clips_and_classes(fault, commands, dataset, tmp_path, kind):
    """A tree of folders: a class and a clip of that name."""
    name, data = NAMES[kind].replace("/", ""), tmp_path / "data"
    clips = iter(sorted(dataset.rglob("*.webm")))
    for split in ("train", "val"):
        for label in (name, "other"):
            folder = data / split / label
            folder.mkdir(parents=True)
            for clip in (f"{name}.webm", "a.webm", "b.webm"):
                shutil.copy(next(clips), folder / clip)
    with fault("names of clips and classes"):
        scan = commands.run(["scan", "--data", data, "--workers", 1])
        harmless(scan)
        trained = commands.run(finetune_arguments(data, tmp_path / "run", epochs=1, batch_size=6))
        harmless(trained)
        assert trained.held() == scan.held(), trained.errors
        if not scan.held():
            return
        (tmp_path / "out").mkdir()
        predictions = tmp_path / "out" / "predictions.csv"
        arguments = [
            "--data",
            data,
            "--checkpoint",
            tmp_path / "run" / "model.safetensors",
            "--device",
            "cpu",
        ]
        for command in (
            ["evaluate", *arguments, "--out", tmp_path / "out" / "scores", "--predictions", predictions],
            ["attention", *arguments, "--out", tmp_path / "out" / "attention.png"],
            ["report", tmp_path / "run", "--out", tmp_path / "out" / "page"],
        ):
            ended = commands.run(command)
            harmless(ended)
            assert ended.held(), ended.errors
        json.loads((tmp_path / "out" / "scores").read_text())
        with predictions.open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not any(cell.startswith(("=", "@", "+")) for cell in cells)
        assert "<script>alert" not in (tmp_path / "out" / "page").read_text()


@pytest.mark.slow
@campaign
@named
def test_missing_files(fault, commands, tmp_path, kind):
    """Errors that name them."""
    missing = tmp_path / NAMES[kind]
    for arguments in (
        ["scan", "--data", missing],
        ["evaluate", "--data", missing, "--checkpoint", missing],
        ["convert", missing, missing, "--to", "official"],
        ["report", missing, "--out", tmp_path / "page"],
        ["sweep", missing, "--data", missing, "--out", missing],
        ["finetune", "--data", missing, "--out", missing, "--model", NAMES[kind]],
        ["finetune", "--data", missing, "--out", missing, "--recipe", NAMES[kind]],
    ):
        with fault("names of missing files"):
            ended = commands.run(arguments)
            harmless(ended)
            assert not ended.held()
