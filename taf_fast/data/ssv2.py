"""Something-Something-V2 annotations, in both generations of file names."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from .errors import DataError

SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Sample:
    """One annotated clip; ``label`` is an index into the data set's classes."""

    id: str
    path: Path
    label: int


@dataclass(frozen=True)
class VideoDataset:
    """The clips of one split in the order of its annotation file; class names by index."""

    root: Path
    split: str
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]


def read_ssv2(root: str | os.PathLike, split: str) -> VideoDataset:
    """Reads the labels and the annotations of ``split`` ("train" or "validation").

    Json files are looked for in ``root`` and ``root/labels``, as ``something-something-v2-<name>.json`` or
    ``<name>.json``; videos are ``<id>.webm`` in ``root/20bn-something-something-v2``, ``root/videos`` or
    ``root``. Whether the videos exist is the scan's business. Raises DataError, naming the file and entry at
    fault.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    root = Path(root)
    classes = _read_classes(_find_json(root, "labels"))
    index = {name: label for label, name in enumerate(classes)}
    folders = (root / "20bn-something-something-v2", root / "videos")
    videos = next((folder for folder in folders if folder.is_dir()), root)

    file = _find_json(root, split)
    entries = _load(file)
    if not isinstance(entries, list):
        raise DataError(f"{file}: expected a list of annotations, got {type(entries).__name__}")
    samples: dict[str, Sample] = {}
    for number, entry in enumerate(entries):
        where = f"{file}: entry {number}"
        name, template = _field(entry, "id", where), _field(entry, "template", where)
        if not name or name == "." or ".." in name or any(c in name for c in "/\\\0"):
            raise DataError(f"{where}: id {name!r} is not a plain file name")
        if name in samples:
            raise DataError(f"{where}: id {name!r} appears twice")
        label = label_text(template)
        if label not in index:
            raise DataError(f"{where} (id {name!r}): {label!r} is not among the {len(index)} labels")
        samples[name] = Sample(name, videos / f"{name}.webm", index[label])
    return VideoDataset(root, split, classes, tuple(samples.values()))


def label_text(template: str) -> str:
    """The key of ``template`` in the labels file: its text without square brackets."""
    return template.replace("[", "").replace("]", "")


def _find_json(root: Path, name: str) -> Path:
    names = (f"something-something-v2-{name}.json", f"{name}.json")
    for folder in (root, root / "labels"):
        for candidate in names:
            if (folder / candidate).is_file():
                return folder / candidate
    raise DataError(f"neither {names[0]} nor {names[1]} in {root} or {root / 'labels'}")


def _load(file: Path) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{file}: line {error.lineno}, column {error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text (byte {error.start})") from error


def _read_classes(file: Path) -> tuple[str, ...]:
    labels = _load(file)
    if not isinstance(labels, dict):
        raise DataError(f"{file}: expected an object of label: index, got {type(labels).__name__}")
    by_index: dict[int, str] = {}
    for label, value in labels.items():
        if not isinstance(value, str) or not value.isdecimal():
            raise DataError(f'{file}: label {label!r}: expected an index such as "17", got {value!r}')
        by_index[int(value)] = label
    if not labels or sorted(by_index) != list(range(len(labels))):
        raise DataError(f"{file}: the indices of {len(labels)} labels must be 0..n-1, each once")
    return tuple(by_index[index] for index in range(len(by_index)))


def _field(entry: object, key: str, where: str) -> str:
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected an object with id and template, got {type(entry).__name__}")
    if key not in entry:
        raise DataError(f"{where}: key {key!r} is missing")
    if not isinstance(entry[key], str):
        raise DataError(f"{where}: {key!r} must be text, got {entry[key]!r}")
    return entry[key]
