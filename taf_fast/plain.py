"""Users' text as plain text: never a terminal's commands, a formula or markup."""

import re

from taf_fast.errors import OutputError

# Cells that begin like this are formulas to spreadsheets, numbers aside.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def printable(text: str) -> str:
    """``text`` with escapes for undecodable bytes and for control characters but newlines and tabs."""
    shown = "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
    return shown.encode("utf-8", "backslashreplace").decode("utf-8")


def one_line(text: str) -> str:
    """:func:`printable` text with escapes for newlines and tabs too, such as those in names of files."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def say(text: object) -> None:
    """Print ``text`` as :func:`printable` has it, at once; OutputError if that cannot be."""
    try:
        print(printable(str(text)), flush=True)
    except OSError as error:
        raise OutputError(f"stdout cannot be written: {error.strerror or error}") from error


def to_cell(value: object) -> object:
    """A value for a CSV, in which no spreadsheet sees a formula: such text gets an apostrophe in front."""
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def from_cell(text: str) -> str:
    """The text that :func:`to_cell` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text
