"""Data sets without annotations: a folder for every class."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from taf_fast.data.clip import Sample, VideoDataset, printable
from taf_fast.data.formats.annotations import check_split
from taf_fast.data.formats.places import VIDEO_SUFFIXES
from taf_fast.errors import DataError

_FOLDERS = {"train": ("train",), "validation": ("val", "validation", "test")}


def read_tree(root: str | os.PathLike, split: str) -> VideoDataset:
    """Reads ``train/<class>/<clip>``, or ``{val,validation,test}/<class>/<clip>`` for "validation".

    If there are several folders for validation, the first in this order is read. A clip is a video file or a
    folder of frames, and its id is "<class>/<clip>"; clips may also lie in folders in the class folder
    ("<class>/<folder>/<clip>"). The classes are the folders in ``train`` that hold clips, in alphabetical
    order. Hidden files and folders are ignored; all others that are no clips are ``unused``. DataError for a
    validation class that ``train`` lacks, and for folders that cannot be read.
    """
    check_split(split)
    root = Path(root)
    train = _Split(root, "train")
    classes = tuple(sorted(train.clips))
    if not classes:
        raise DataError(f"{train.folder}: expected a folder of clips for every class, there is none")
    index = {name: label for label, name in enumerate(classes)}
    read = train if split == "train" else _Split(root, split)
    for name in read.clips:
        if name not in index:
            raise DataError(
                f"{read.folder / name}: class {printable(name)!r} is not among the {len(index)} with clips "
                f"in {train.folder}"
            )
    samples = tuple(
        Sample(printable(path.relative_to(read.folder).as_posix()), path, index[name])
        for name in sorted(read.clips)
        for path in read.clips[name]
    )
    return VideoDataset(root, split, tuple(map(printable, classes)), samples, "folders", tuple(read.unused))


def read_files(paths: Iterable[str | os.PathLike], classes: tuple[str, ...]) -> VideoDataset:
    """Reads clips without labels, each of which gets 0: video files of any name, folders of frames, and all
    clips
    in other folders. A clip's id is its path. DataError for a path that is none of these."""
    samples: dict[str, Sample] = {}
    unused: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise DataError(f"{printable(str(path))} does not exist, expected a video or a folder")
        found = list(_clips(path, [], unused)) if path.is_dir() and not _is_clip(path) else [path]
        if not found:
            raise DataError(f"{printable(str(path))} holds no videos and no folders of frames")
        samples |= {printable(str(clip)): Sample(printable(str(clip)), clip, 0) for clip in found}
    return VideoDataset(Path(), "files", classes, tuple(samples.values()), "files", tuple(unused))


def is_tree(root: Path) -> bool:
    """Whether ``root`` has a folder for each split."""
    return all(any((root / name).is_dir() for name in names) for names in _FOLDERS.values())


class _Split:
    """The clips of a split by class, and what else is in its folder."""

    def __init__(self, root: Path, split: str):
        found = next((root / name for name in _FOLDERS[split] if (root / name).is_dir()), None)
        if found is None:
            raise DataError(f"no folder {' nor '.join(_FOLDERS[split])} in {root}")
        self.folder: Path = found
        self.clips: dict[str, list[Path]] = {}
        self.unused: list[Path] = []
        above = [_identity(folder) for folder in (root, self.folder)]
        # Not DirEntry.is_dir(), which raises errors for links that lead in circles.
        for entry in _visible(self.folder):
            clips = list(_clips(Path(entry.path), above, self.unused)) if os.path.isdir(entry.path) else []
            if clips:
                self.clips[entry.name] = clips
            elif not os.path.isdir(entry.path) or not any(_visible(Path(entry.path))):
                self.unused.append(Path(entry.path))


def _clips(folder: Path, above: list[tuple[int, int]], unused: list[Path]) -> Iterator[Path]:
    """The clips in a folder, in alphabetical order; what is none is appended to ``unused``. ``above``
    identifies
    the folders that hold it."""
    here = _identity(folder)
    if here in above:
        unused.append(folder)  # a link back to one of these folders
        return
    for entry in _visible(folder):
        path = Path(entry.path)
        if os.path.isdir(entry.path):
            if _is_clip(path):
                yield path
            else:
                yield from _clips(path, [*above, here], unused)
        elif path.suffix.lower() in VIDEO_SUFFIXES:
            yield path
        else:
            unused.append(path)


def _identity(folder: Path) -> tuple[int, int]:
    """What is the same for all paths to a folder."""
    found = folder.stat()
    return found.st_dev, found.st_ino


def _is_clip(folder: Path) -> bool:
    """Whether a folder holds frames, or nothing that could be a clip."""
    try:
        with os.scandir(folder) as entries:
            others = False
            for entry in entries:
                if re.fullmatch(r"(img_)?\d{5,6}\.jpg", entry.name, re.ASCII):
                    return True
                others |= os.path.isdir(entry.path) or Path(entry.name).suffix.lower() in VIDEO_SUFFIXES
            return not others
    except OSError:
        return True  # the scan finds out why it cannot be read


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of ``folder`` that are not hidden, in alphabetical order."""
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror or error}") from error
    return sorted(visible, key=lambda entry: entry.name)
