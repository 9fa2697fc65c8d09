"""Run the command line, in a new process and in this one."""

import subprocess
import sys

import pytest

from taf_fast import cli


def command(*arguments) -> list[str]:
    return [sys.executable, "-m", "taf_fast", *map(str, arguments)]


def taf_fast(*arguments, timeout=300) -> subprocess.CompletedProcess:
    """Run the command line to its end."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=timeout)


def output_of(capsys, monkeypatch, *arguments) -> str:
    """Run the command line in this process, which saves its start; it must succeed. What it printed."""
    monkeypatch.setattr(sys, "argv", ["taf-fast", *map(str, arguments)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    assert not ended.value.code, printed.err
    return printed.out


def error_of(capsys, monkeypatch, *arguments) -> str:
    """Run the command line in this process; it must end with an error, which is returned."""
    monkeypatch.setattr(sys, "argv", ["taf-fast", *map(str, arguments)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    errors = capsys.readouterr().err
    assert ended.value.code == 2 and errors.startswith("error: "), errors
    assert errors.count("\n") == 1 and errors.endswith("\n"), errors
    return errors


def finetune_arguments(data, out, **options) -> list[str]:
    """A run of seconds: TSM-ResNet-18 on 32-pixel clips."""
    options = dict(model="tsm_resnet18", size=32, batch_size=4, epochs=2, lr=0.01, device="cpu") | options
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return ["finetune", "--data", str(data), "--out", str(out), *flags]
