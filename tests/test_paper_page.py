"""docs/paper.md names commands, options and tests that there are."""

import re
from pathlib import Path

import click
import typer.main

import taf_fast
from taf_fast.cli.app import app
from taf_fast.run.recipes import NAMES, packaged

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")


def test_commands_and_options():
    group = typer.main.get_command(app)
    context = click.Context(group)
    shown = re.findall(r"`taf-fast (\w+)([^`]*)`", PAGE)
    assert len(shown) > 12
    for name, rest in shown:
        command = group.get_command(context, name)
        assert command is not None, name
        known = {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
        assert set(re.findall(r"--[\w-]+", rest)) <= known, (name, rest)
        assert name != "sweep" or rest.split()[0] in packaged("sweeps")
        assert all(recipe in (*NAMES, "NAME") for recipe in re.findall(r"--recipe (\S+)", rest))


def test_tests_and_names():
    for path in re.findall(r"`(tests/[\w/.]+|taf_fast/[\w/.]+)`", PAGE):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"`taf_fast\.([\w.]+)`", PAGE):
        found = taf_fast
        for part in name.split("."):
            found = getattr(found, part)


def test_every_table_and_equation_of_the_paper_is_there():
    for number in range(1, 8):
        assert re.search(rf"Tables? [\w, ]*{number}", PAGE), number
        assert re.search(rf"Eq\. ([\d, ]*\b)?{number}", PAGE), number
