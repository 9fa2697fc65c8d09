"""Data sets without annotations: a folder for every class."""

import os
from pathlib import Path

from taf_fast.data.errors import DataError

from .annotations import Sample, VideoDataset, check_split

VIDEO_SUFFIXES = (".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv")
_FOLDERS = {"train": ("train",), "validation": ("val", "validation", "test")}


def read_tree(root: str | os.PathLike, split: str) -> VideoDataset:
    """Reads ``train/<class>/<clip>``, or ``{val,validation,test}/<class>/<clip>`` for "validation".

    Of several folders for validation the first in this order is read. The classes are the folders in
    ``train``, in alphabetical order. A clip is a video file or a folder of frames, and its id is
    "<class>/<clip>". Hidden files and folders are ignored. Raises DataError for a validation class that
    ``train`` lacks, and for files that are no videos by their suffix, or lie beside the class folders: to
    ignore them could leave out clips unnoticed.
    """
    check_split(split)
    root = Path(root)
    train = _split_folder(root, "train")
    classes = tuple(_class_folders(train))
    if not classes:
        raise DataError(f"{train}: expected a folder for every class, there is none")
    index = {name: label for label, name in enumerate(classes)}
    folder = _split_folder(root, split)
    samples = []
    for name in _class_folders(folder):
        if name not in index:
            raise DataError(f"{folder / name}: class {name!r} is not among the {len(index)} in {train}")
        for clip in _visible(folder / name):
            if not clip.is_dir() and Path(clip.name).suffix.lower() not in VIDEO_SUFFIXES:
                raise DataError(
                    f"{clip.path}: expected folders of frames or videos ({', '.join(VIDEO_SUFFIXES)})"
                )
            samples.append(Sample(f"{name}/{clip.name}", folder / name / clip.name, index[name]))
    return VideoDataset(root, split, classes, tuple(samples), "folders")


def is_tree(root: Path) -> bool:
    """Whether ``root`` has a folder for each split."""
    return all(any((root / name).is_dir() for name in names) for names in _FOLDERS.values())


def _split_folder(root: Path, split: str) -> Path:
    found = next((root / name for name in _FOLDERS[split] if (root / name).is_dir()), None)
    if found is None:
        raise DataError(f"no folder {' nor '.join(_FOLDERS[split])} in {root}")
    return found


def _class_folders(folder: Path) -> list[str]:
    entries = _visible(folder)
    for entry in entries:
        if not entry.is_dir():
            raise DataError(f"{entry.path}: expected a folder for every class, this is a file")
    return [entry.name for entry in entries]


def _visible(folder: Path) -> list[os.DirEntry]:
    """What is in ``folder``, in alphabetical order."""
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
