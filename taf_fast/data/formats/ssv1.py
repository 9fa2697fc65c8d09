"""Something-Something-V1 annotations: csv files and folders of JPEG frames."""

import os
from pathlib import Path

from taf_fast.data.clip import VideoDataset
from taf_fast.data.formats.annotations import check_id, check_split, load_lines, load_names
from taf_fast.data.formats.places import annotation_files, find_annotations, place_clips
from taf_fast.errors import DataError

_FRAMES = ("20bn-something-something-v1", "rawframes", "")


def read_ssv1(root: str | os.PathLike, split: str) -> VideoDataset:
    """Reads ``something-something-v1-{labels,<split>}.csv``; ``split`` is "train" or "validation".

    They may be in ``root``, ``root/labels`` or ``root/annotations``. Classes are numbered in alphabetical
    order, as in the official code of TSM, GST and TPN and in Something-Something-V2. A clip is the folder
    ``<id>`` in ``root/20bn-something-something-v1``, ``root/rawframes`` or ``root``; the scan finds out
    whether it exists. DataError names the file and line at fault.
    """
    check_split(split)
    root = Path(root)
    classes = tuple(sorted(raw_ssv1_classes(root)))
    index = {name: label for label, name in enumerate(classes)}
    file = find_annotations(root, _csv(split))
    labels: dict[str, int] = {}
    for number, line in load_lines(file):
        where = f"{file}: line {number}"
        name, semicolon, label = (part.strip() for part in line.partition(";"))
        if not semicolon:
            raise DataError(f"{where}: expected id;label, got {line!r}")
        check_id(name, labels, where)
        if label not in index:
            raise DataError(f"{where} (id {name!r}): {label!r} is not among the {len(index)} labels")
        labels[name] = index[label]
    return VideoDataset(root, split, classes, place_clips(root, (), "", _FRAMES, labels), "ssv1")


def raw_ssv1_classes(root: str | os.PathLike) -> tuple[str, ...]:
    """The class names in the order of the labels file, which MMAction2's and IBM's checkpoints follow."""
    return load_names(find_annotations(Path(root), _csv("labels")))


def labels_files(root: Path) -> list[Path]:
    """The files that may hold the class names, best first."""
    return annotation_files(root, _csv("labels"))


def _csv(name: str) -> str:
    return f"something-something-v1-{name}.csv"
