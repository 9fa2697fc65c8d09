"""Something-Something-V1 annotations: csv files and folders of JPEG frames."""

import os
from pathlib import Path

from .annotations import Sample, VideoDataset, check_id, check_split, load_text
from .errors import DataError


def read_ssv1(root: str | os.PathLike, split: str) -> VideoDataset:
    """Reads ``something-something-v1-{labels,<split>}.csv``; ``split`` is "train" or "validation".

    A class's index is its rank in alphabetical order, as in the official code of TSM, GST and TPN and as in
    Something-Something-V2. A clip is the folder ``<id>`` in ``root/20bn-something-something-v1`` or ``root``;
    whether it exists is the scan's business. Raises DataError, naming the file and line at fault.
    """
    check_split(split)
    root = Path(root)
    classes = tuple(sorted(raw_ssv1_classes(root)))
    index = {name: label for label, name in enumerate(classes)}
    frames = root / "20bn-something-something-v1"
    if not frames.is_dir():
        frames = root

    file = _csv(root, split)
    samples: dict[str, Sample] = {}
    for number, line in _lines(file):
        where = f"{file}: line {number}"
        name, semicolon, label = line.partition(";")
        if not semicolon:
            raise DataError(f"{where}: expected id;label, got {line!r}")
        check_id(name, samples, where)
        if label not in index:
            raise DataError(f"{where} (id {name!r}): {label!r} is not among the {len(index)} labels")
        samples[name] = Sample(name, frames / name, index[label])
    return VideoDataset(root, split, classes, tuple(samples.values()), "ssv1")


def raw_ssv1_classes(root: str | os.PathLike) -> tuple[str, ...]:
    """The class names in the order of the labels file, which MMAction2's and IBM's checkpoints follow."""
    file = _csv(Path(root), "labels")
    names = tuple(line for _, line in _lines(file))
    if not names:
        raise DataError(f"{file}: expected one label per line, the file is empty")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{file}: label {twice!r} appears twice")
    return names


def labels_file(root: Path) -> Path:
    """Where the class names are."""
    return root / "something-something-v1-labels.csv"


def _csv(root: Path, name: str) -> Path:
    file = labels_file(root).with_name(f"something-something-v1-{name}.csv")
    if not file.is_file():
        raise DataError(f"no {file.name} in {root}")
    return file


def _lines(file: Path) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1."""
    lines = enumerate(load_text(file).splitlines(), 1)
    return [(number, line.rstrip()) for number, line in lines if line.strip()]
