"""Diving48 annotations, of the cleaned second version or, where it is absent, of the first."""

import os
from pathlib import Path

from .annotations import Sample, VideoDataset, check_id, check_split, field, load_entries
from .errors import DataError

# The versions call the validation split "test".
_FILES = {"train": "train", "validation": "test"}
_VERSIONS = ("Diving48_V2_", "Diving48_V1_", "Diving48_")


def read_diving48(root: str | os.PathLike, split: str) -> VideoDataset:
    """Reads ``Diving48_vocab.json`` and ``Diving48_V2_{train,test}.json``, the latter for "validation".

    Version 1 (``Diving48_V1_*.json`` or ``Diving48_*.json``) is read only where version 2 has no file at all:
    the splits of different versions overlap. A class's name is its four attributes joined by commas; a clip
    is ``root/rgb/<vid_name>.mp4``, whose length the scan counts. Raises DataError, naming the file and entry
    at fault.
    """
    check_split(split)
    root = Path(root)
    classes = _read_classes(vocabulary_file(root))
    file = _find_annotations(root, split)
    samples: dict[str, Sample] = {}
    for number, entry in enumerate(load_entries(file)):
        where = f"{file}: entry {number}"
        name, label = field(entry, "vid_name", str, where), field(entry, "label", int, where)
        check_id(name, samples, where)
        if not 0 <= label < len(classes):
            raise DataError(f"{where} (id {name!r}): label {label} is not in 0..{len(classes) - 1}")
        samples[name] = Sample(name, root / "rgb" / f"{name}.mp4", label)
    return VideoDataset(root, split, classes, tuple(samples.values()), "diving48")


def vocabulary_file(root: Path) -> Path:
    """Where the class names are."""
    return root / "Diving48_vocab.json"


def _find_annotations(root: Path, split: str) -> Path:
    for version in _VERSIONS:
        files = {name: root / f"{version}{part}.json" for name, part in _FILES.items()}
        if any(file.is_file() for file in files.values()):
            if not files[split].is_file():
                raise DataError(f"no {files[split].name} in {root}, beside the other split's file")
            return files[split]
    raise DataError(f"no {_VERSIONS[0]}{_FILES[split]}.json in {root}")


def _read_classes(file: Path) -> tuple[str, ...]:
    if not file.is_file():
        raise DataError(f"no {file.name} in {file.parent}")
    names = []
    for number, attributes in enumerate(load_entries(file)):
        is_list = isinstance(attributes, list) and len(attributes) == 4
        if not is_list or not all(isinstance(attribute, str) for attribute in attributes):
            raise DataError(f"{file}: entry {number}: expected a list of 4 texts, got {attributes!r}")
        names.append(",".join(attributes))
    if not names or len(set(names)) < len(names):
        raise DataError(f"{file}: expected different classes, got {len(names)} with {len(set(names))} names")
    return tuple(names)
