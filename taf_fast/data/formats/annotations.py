"""Reading and checking annotation files; errors name the entry at fault."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from taf_fast.errors import DataError
from taf_fast.parsing import parse_json

SPLITS = ("train", "validation")


def check_split(split: str) -> None:
    """ValueError unless ``split`` is "train" or "validation"."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")


def check_id(name: str, known: dict, where: str) -> None:
    """DataError unless ``name`` can be a file name and is not ``known`` yet."""
    if not name or name == "." or ".." in name or any(c in name for c in "/\\\0"):
        raise DataError(f"{where}: id {name!r} is not a plain file name")
    if name in known:
        raise DataError(f"{where}: id {name!r} appears twice")


def load_text(file: Path, any_bytes: bool = False) -> str:
    """The contents without a byte order mark; DataError if they are not UTF-8.

    ``any_bytes`` keeps other bytes as Python does in file names.
    """
    try:
        return file.read_text(encoding="utf-8-sig", errors="surrogateescape" if any_bytes else "strict")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error


def load_lines(file: Path, any_bytes: bool = False) -> list[tuple[int, str]]:
    """The lines that are not blank, without trailing white space, and their numbers, counted from 1."""
    # Not splitlines(), which breaks lines at more characters than editors do.
    lines = enumerate(load_text(file, any_bytes).split("\n"), 1)
    return [(number, line.rstrip()) for number, line in lines if line.strip()]


def load_names(file: Path) -> tuple[str, ...]:
    """The class names in a file that has one on every line; DataError if there are none, or one twice."""
    names = tuple(line for _, line in load_lines(file))
    if not names:
        raise DataError(f"{file}: expected one label per line, the file is empty")
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{file}: label {twice!r} appears twice")
    return names


def load_json(file: Path) -> object:
    """The contents; DataError with the position if they are not JSON."""
    try:
        return parse_json(load_text(file))
    except json.JSONDecodeError as error:
        raise DataError(f"{file}: line {error.lineno}, column {error.colno}: {error.msg}") from error
    except ValueError as error:
        raise DataError(f"{file}: {error}") from error


def load_entries(file: Path) -> list:
    """The list in a JSON file of annotations."""
    entries = load_json(file)
    if not isinstance(entries, list):
        raise DataError(f"{file}: expected a list of annotations, got {type(entries).__name__}")
    return entries


def field(entry: object, key: str, kind: type, where: str) -> Any:
    """``entry[key]``; DataError unless ``entry`` is an object with this key and a value of type ``kind``.

    White space around text is removed.
    """
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected an object with {key}, got {type(entry).__name__}")
    if key not in entry:
        raise DataError(f"{where}: key {key!r} is missing")
    value = entry[key].strip() if isinstance(entry[key], str) else entry[key]
    # bool is a subclass of int.
    if not isinstance(value, kind) or isinstance(value, bool):
        expected = {str: "text", int: "a whole number"}[kind]
        raise DataError(f"{where}: {key!r} must be {expected}, got {value!r}")
    return value
