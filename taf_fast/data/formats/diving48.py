"""Diving48 annotations: the cleaned second version, or the first if that is absent."""

import os
from pathlib import Path

from taf_fast.data.clip import VideoDataset
from taf_fast.data.formats.annotations import check_id, check_split, field, load_entries
from taf_fast.data.formats.places import annotation_files, find_annotations, place_clips
from taf_fast.errors import DataError

# The versions call the validation split "test".
_FILES = {"train": "train", "validation": "test"}
_VERSIONS = ("Diving48_V2_", "Diving48_V1_", "Diving48_")
_VOCABULARY = "Diving48_vocab.json"
_VIDEOS = ("rgb", "videos")
_FRAMES = ("rawframes",)


def read_diving48(root: str | os.PathLike, split: str) -> VideoDataset:
    """Reads ``Diving48_vocab.json`` and ``Diving48_V2_{train,test}.json``, the latter for "validation".

    They may be in ``root``, ``root/labels`` or ``root/annotations``. Version 1 (``Diving48_V1_*.json`` or
    ``Diving48_*.json``) is read only if there is no file of version 2, because the splits of the versions
    overlap. A class name is its four attributes joined by commas. A clip is ``<vid_name>.mp4``, or another
    video suffix, in ``root/rgb`` or ``root/videos``, or if there are none a folder of frames ``<vid_name>``
    in ``root/rawframes``, whose length the scan counts. DataError names the file and entry at fault.
    """
    check_split(split)
    root = Path(root)
    classes = diving48_classes(root)
    file = _find_annotations(root, split)
    labels: dict[str, int] = {}
    for number, entry in enumerate(load_entries(file)):
        where = f"{file}: entry {number}"
        name, label = field(entry, "vid_name", str, where), field(entry, "label", int, where)
        check_id(name, labels, where)
        if not 0 <= label < len(classes):
            raise DataError(f"{where} (id {name!r}): label {label} is not in 0..{len(classes) - 1}")
        labels[name] = label
    return VideoDataset(root, split, classes, place_clips(root, _VIDEOS, ".mp4", _FRAMES, labels), "diving48")


def labels_files(root: Path) -> list[Path]:
    """The files that may hold the class names, best first."""
    return annotation_files(root, _VOCABULARY)


def diving48_classes(root: Path) -> tuple[str, ...]:
    """The class names by index."""
    file = find_annotations(root, _VOCABULARY)
    names = []
    for number, attributes in enumerate(load_entries(file)):
        is_list = isinstance(attributes, list) and len(attributes) == 4
        if not is_list or not all(isinstance(attribute, str) for attribute in attributes):
            raise DataError(f"{file}: entry {number}: expected a list of 4 texts, got {attributes!r}")
        names.append(",".join(attribute.strip() for attribute in attributes))
    if not names or len(set(names)) < len(names):
        raise DataError(f"{file}: expected different classes, got {len(names)} with {len(set(names))} names")
    return tuple(names)


def _find_annotations(root: Path, split: str) -> Path:
    for version in _VERSIONS:
        names = {name: f"{version}{part}.json" for name, part in _FILES.items()}
        if any(file.is_file() for file in annotation_files(root, *names.values())):
            return find_annotations(root, names[split])
    return find_annotations(root, f"{_VERSIONS[0]}{_FILES[split]}.json")
