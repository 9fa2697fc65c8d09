"""The application that the commands belong to, and how it ends."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any

import torch
import typer

from taf_fast import __version__
from taf_fast.errors import UserError
from taf_fast.plain import one_line, say
from taf_fast.process import ranks

# Of a command line that is none. typer gives it no name of its own.
_UsageError: Any = typer.BadParameter.__base__

# What PyTorch's allocator on the CPU says.
_NO_MEMORY = "can't allocate memory"
# What pathlib says before Python 3.13.
_CIRCLE = "Symlink loop from "

app = typer.Typer(
    no_args_is_help=True, add_completion=False, context_settings={"help_option_names": ["-h", "--help"]}
)


def _version(wanted: bool) -> None:
    if wanted:
        say(f"taf-fast {__version__}")
        raise typer.Exit


@app.callback()
def _application(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Temporal Adversarial Fine-tuning of video models."""


def main() -> None:
    """Run the command line; an error that the user can mend is one line on stderr and exit status 2."""
    with _standard_streams():
        try:
            with ranks.joined(), _errors_of_the_system():
                _require_values(sys.argv[1:])
                sys.exit(_status())
        except UserError as error:
            with contextlib.suppress(OSError):
                print(one_line(f"error: {error}"), file=sys.stderr)
            sys.exit(2)


@contextlib.contextmanager
def _standard_streams() -> Iterator[None]:
    """Work with whatever stdin, stdout and stderr the process was given."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: the next file would get its number, and what is printed
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
    # File names may hold bytes that are no text.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                if stream is not None:
                    stream.flush()
            except OSError:  # Python would try it again at its end, and say so
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _status() -> int:
    """Run the command that the arguments name; its exit status."""
    try:
        return app(prog_name="taf-fast", standalone_mode=False) or 0
    except _UsageError as error:
        message = error.format_message().rstrip(".")
        if not message:  # without arguments there is the help, which has been printed
            return 2
        see = "" if error.ctx is None else f"; see {error.ctx.command_path} --help"
        raise UserError(message[0].lower() + message[1:] + see) from None


def _require_values(arguments: list[str]) -> None:
    """No option and no argument means anything if it is empty; an empty path would be the current folder."""
    for before, argument in pairwise(["", *arguments]):
        name = argument if argument.startswith("--") else before if before.startswith("-") else "an argument"
        if not argument or (argument.startswith("--") and argument.endswith("=")):
            raise UserError(f"{name.rstrip('=')} is empty, expected a value")


@contextlib.contextmanager
def _errors_of_the_system() -> Iterator[None]:
    """What the system refuses, such as to read a file or more memory, is an error that the user can mend."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        place = "" if error.filename is None else f"{error.filename}: "
        raise UserError(f"{place}{error.strerror or error}") from error
    except (MemoryError, RuntimeError) as error:
        if str(error).startswith(_CIRCLE):
            raise UserError(f"{str(error).removeprefix(_CIRCLE)}: a circle of symbolic links") from error
        if not (isinstance(error, (MemoryError, torch.OutOfMemoryError)) or _NO_MEMORY in str(error)):
            raise
        raise UserError(
            "out of memory: a smaller --batch-size, --num-segments or --size, or fewer --workers, need less"
        ) from error
