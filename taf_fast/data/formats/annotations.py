"""What the readers of annotation files share: their result, and checks that name the entry at fault."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from taf_fast.data.errors import DataError

SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Sample:
    """One annotated clip: a video file or a folder of frames; ``label`` is an index into the data set's
    classes. ``frames`` are the numbers of its first and last frame in the folder where the annotations say
    them; None for all there are."""

    id: str
    path: Path
    label: int
    frames: tuple[int, int] | None = None


@dataclass(frozen=True)
class VideoDataset:
    """The clips of one split in the order of its annotation file, of a cache as Clips; class names by index.

    ``name`` is the data set: "ssv1", "ssv2" or "diving48"; "list" for another one that lists describe, or
    "folders" for one that is a tree of folders.
    """

    root: Path
    split: str
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    name: str


def check_split(split: str) -> None:
    """ValueError unless ``split`` is "train" or "validation"."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")


def check_id(name: str, known: dict, where: str) -> None:
    """DataError unless ``name`` can be a file's name and is not among the ``known`` ones."""
    if not name or name == "." or ".." in name or any(c in name for c in "/\\\0"):
        raise DataError(f"{where}: id {name!r} is not a plain file name")
    if name in known:
        raise DataError(f"{where}: id {name!r} appears twice")


def load_text(file: Path) -> str:
    """The contents; DataError when they are not UTF-8."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text (byte {error.start})") from error


def load_lines(file: Path) -> list[tuple[int, str]]:
    """The lines that are not blank, without the white space at their ends, and their numbers from 1."""
    lines = enumerate(load_text(file).splitlines(), 1)
    return [(number, line.rstrip()) for number, line in lines if line.strip()]


def load_names(file: Path) -> tuple[str, ...]:
    """The class names in a file with one on every line; DataError when there are none, or one twice."""
    names = tuple(line for _, line in load_lines(file))
    if not names:
        raise DataError(f"{file}: expected one label per line, the file is empty")
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{file}: label {twice!r} appears twice")
    return names


def load_json(file: Path) -> object:
    """The contents; DataError with the place when they are not JSON."""
    try:
        return json.loads(load_text(file))
    except json.JSONDecodeError as error:
        raise DataError(f"{file}: line {error.lineno}, column {error.colno}: {error.msg}") from error


def load_entries(file: Path) -> list:
    """The list in a JSON file of annotations."""
    entries = load_json(file)
    if not isinstance(entries, list):
        raise DataError(f"{file}: expected a list of annotations, got {type(entries).__name__}")
    return entries


def field(entry: object, key: str, kind: type, where: str):
    """``entry[key]``; DataError unless ``entry`` is an object that has it, as a ``kind``."""
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected an object with {key}, got {type(entry).__name__}")
    if key not in entry:
        raise DataError(f"{where}: key {key!r} is missing")
    value = entry[key]
    # bool is a subclass of int.
    if not isinstance(value, kind) or isinstance(value, bool):
        expected = {str: "text", int: "a whole number"}[kind]
        raise DataError(f"{where}: {key!r} must be {expected}, got {value!r}")
    return value
