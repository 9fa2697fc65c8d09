"""Lists of clips, one per line, as the official code of the models reads them."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from taf_fast.data.clip import Sample, VideoDataset, printable
from taf_fast.data.formats.annotations import check_split, load_lines, load_names
from taf_fast.data.formats.official import OFFICIAL, find_official
from taf_fast.data.formats.places import annotation_files, find_clips
from taf_fast.errors import DataError

_COUNT = ("path", "number of frames", "class")
_RANGE = ("path", "first frame", "last frame", "class")
_VIDEO = ("path", "class")
_CLIPS = (
    "{}",
    "20bn-something-something-v1/{}",
    "20bn-something-something-v2-frames/{}",
    "20bn-something-something-v2/{}",
    "rawframes/{}",
    "videos/{}",
    "frames/{}",
    "rgb/{}",
)
# The names that the projects give to the folders of the data sets.
_PROJECT_FOLDER = re.compile(r"/(?:20bn-something-something-|something/?|sth)(v[12])(?:-[^/]*)?/")


@dataclass(frozen=True)
class ListFormat:
    """The names of a project's lists, their columns, and the data set if the names tell it.

    ``raw``: classes of Something-Something V1 are numbered by their lines in its labels file.
    """

    train: str
    validation: str
    columns: tuple[str, ...]
    raw: bool = False
    dataset: str | None = None


def _mmaction2(prefix: str, dataset: str) -> list[ListFormat]:
    kinds = {"rawframes": _COUNT, "videos": _VIDEO}
    return [
        ListFormat(f"{prefix}_train_list_{kind}.txt", f"{prefix}_val_list_{kind}.txt", columns, True, dataset)
        for kind, columns in kinds.items()
    ]


# The names for validation are all different; those for training are not.
FORMATS = (
    ListFormat("train_videofolder.txt", "val_videofolder.txt", _COUNT),  # TSM, TPN
    ListFormat("train.txt", "valid.txt", _COUNT),  # GST
    ListFormat("train.txt", "val.txt", _RANGE, raw=True),  # TAM: IBM/action-recognition-pytorch
    ListFormat("training_256.txt", "validation_256.txt", _RANGE, raw=True),  # IBM/bLVNet-TAM
    *_mmaction2("sthv1", "ssv1"),
    *_mmaction2("sthv2", "ssv2"),
    *_mmaction2("diving48", "diving48"),
)


@dataclass(frozen=True)
class _Entry:
    """A line of a list; ``path`` is relative to the folder of the clips, ``label`` as written."""

    line: int
    path: str
    frames: tuple[int, int] | None
    label: int


def read_lists(root: str | os.PathLike, split: str) -> VideoDataset:
    """Reads the list of ``split`` ("train" or "validation"). Columns are separated by TABs if a line has any,
    otherwise by white space:

    - ``{train,val}_videofolder.txt``, of TSM and TPN, and ``{train,valid}.txt``, of GST: path, number of
      frames, class. Frames count from 1.
    - ``{train,val}.txt`` and ``{training,validation}_256.txt``, of IBM's code for TAM: path, first frame,
      last frame, class.
    - ``{sthv1,sthv2,diving48}_{train,val}_list_rawframes.txt``, of MMAction2: path, number of frames, class.
    - ``{sthv1,sthv2,diving48}_{train,val}_list_videos.txt``, of MMAction2: path, class. They are read if
      there are none for raw frames.

    Lists may be in ``root``, ``root/labels`` or ``root/annotations``, both splits in the same folder. Paths
    are relative to ``root`` or a folder in it: ``20bn-something-something-v1``,
    ``20bn-something-something-v2-frames``, ``20bn-something-something-v2``, ``rawframes``, ``videos``,
    ``frames`` or ``rgb``. They may also begin with the last two folders of ``root`` itself, or be absolute,
    but never leave ``root``. The scan finds out whether the clips exist.

    ``name`` is "ssv1", "ssv2" or "diving48" if the name of the list says so, or the official file of class
    names in one of the three folders, or a folder on the way to the clips (``something/v1``,
    ``somethingv1``, ``sthv1``, ``20bn-something-something-v1``, the same with v2); otherwise "list". An id is
    the last name of the path without suffix, or in a "list" the whole path.

    Class names are the lines of ``category.txt`` in the folder of TSM's and GST's lists, or else those of the
    official file. With neither, classes are called "0", "1" and so on, up to the largest in either split.
    Classes of Something-Something V1 are in alphabetical order, as in ``read_ssv1``; IBM's and MMAction2's,
    which are in the order of the labels file, are renumbered.

    DataError names the file and line at fault. It is also raised if there are no lists, or lists of several
    data sets, and if the order of classes is in doubt: for IBM's and MMAction2's lists of V1 without its
    labels file, and for V1 and V2 with a ``category.txt`` that is not in alphabetical order.
    """
    check_split(split)
    root = Path(root)
    found = find_lists(root)
    if len(found) != 1:
        several = ", ".join(str(file) for file, _ in found) or "none"
        raise DataError(f"{root}: expected the lists of one data set, found {several}")
    validation, format = found[0]
    files = {"train": validation.with_name(format.train), "validation": validation}
    entries = _read(files[split], format, root)

    template = find_clips(root, _CLIPS, [entry.path for entry in entries])
    name = _dataset_name(root, format, root / template.format(entries[0].path))
    names = _class_names(root, format, name, files[split])
    if names is None:
        others = (_read(file, format, root) for other, file in files.items() if other != split)
        largest = max(entry.label for part in (entries, *others) for entry in part)
        names = tuple(map(str, range(largest + 1)))
    classes = tuple(sorted(names)) if name == "ssv1" and format.raw else names
    index = {class_name: label for label, class_name in enumerate(classes)}

    samples: dict[str, Sample] = {}
    for entry in entries:
        where = f"{files[split]}: line {entry.line}"
        if entry.label >= len(names):
            raise DataError(f"{where}: class {entry.label} is not in 0..{len(names) - 1}")
        id = printable(entry.path if name == "list" else PurePosixPath(entry.path).stem)
        if id in samples:
            raise DataError(f"{where}: {id!r} appears twice")
        path = root / template.format(entry.path)
        samples[id] = Sample(id, path, index[names[entry.label]], entry.frames)
    return VideoDataset(root, split, classes, tuple(samples.values()), name)


def find_lists(root: Path) -> list[tuple[Path, ListFormat]]:
    """The lists for validation in ``root``, at most one for each data set that their names tell."""
    found: dict[str | ListFormat, tuple[Path, ListFormat]] = {}
    for format in FORMATS:
        file = next((file for file in annotation_files(root, format.validation) if file.is_file()), None)
        if file is not None:
            found.setdefault(format.dataset or format, (file, format))
    return list(found.values())


def _read(file: Path, format: ListFormat, root: Path) -> list[_Entry]:
    if not file.is_file():
        raise DataError(f"no {file.name} next to {format.validation} in {file.parent}")
    expected = ", ".join(format.columns)
    below = _below(root)
    entries = []
    for line, text in load_lines(file, any_bytes=True):
        where = f"{file}: line {line}"
        path, *columns = _columns(text, len(format.columns))
        if len(columns) != len(format.columns) - 1:
            raise DataError(f"{where}: expected {expected}, got {printable(text)!r}")
        *frames, label = (
            _number(column, name, where) for name, column in zip(format.columns[1:], columns, strict=True)
        )
        if len(frames) == 2 and frames[0] > frames[1]:
            raise DataError(f"{where}: the first frame, {frames[0]}, comes after the last, {frames[1]}")
        first, last = frames[0] if len(frames) == 2 else 1, frames[-1] if frames else 0
        entries.append(_Entry(line, below(path, where), (first, last) if frames else None, label))
    if not entries:
        raise DataError(f"{file}: expected lines of {expected}, the file is empty")
    return entries


def _columns(text: str, count: int) -> list[str]:
    if "\t" in text:
        return [column.strip() for column in text.split("\t")]
    columns = text.split()
    extra = columns[1 : len(columns) - count + 1]
    # A path may have spaces; numbers are columns that should not be there.
    return columns if all(column.isdecimal() for column in extra) else text.rsplit(None, count - 1)


def _number(text: str, name: str, where: str) -> int:
    if not re.fullmatch("[0-9]{1,6}", text):
        raise DataError(f"{where}: {name} must be a whole number from 0 to 999999, got {printable(text)!r}")
    return int(text)


def _below(root: Path) -> Callable[[str, str], str]:
    """A function that makes a list's path relative to ``root`` or its folder of clips; DataError outside."""
    absolute = os.path.abspath(root)
    names = (absolute, os.path.realpath(root), os.path.join(*Path(absolute).parts[-2:]))
    bases = [os.path.join(base, "") for base in names]

    def below(path: str, where: str) -> str:
        clean = os.path.normpath(path)
        base = next((base for base in bases if clean.startswith(base)), "")
        leaves = ".." in path.split("/") or (os.path.isabs(clean) and not base)
        if leaves or clean == "." or "\0" in path:
            raise DataError(
                f"{where}: expected the path of a clip in {root}, without .., got {printable(path)!r}"
            )
        return clean[len(base) :]

    return below


def _dataset_name(root: Path, format: ListFormat, clip: Path) -> str:
    folder = _PROJECT_FOLDER.search(os.path.abspath(clip))
    return format.dataset or find_official(root) or (f"ss{folder[1]}" if folder else "list")


def _class_names(root: Path, format: ListFormat, name: str, file: Path) -> tuple[str, ...] | None:
    """The class names by their numbers in the list ``file``; None if there are none."""
    official = find_official(root) == name
    category = file.with_name("category.txt")
    if category.is_file() and not format.raw:
        names = load_names(category)
        if name in ("ssv1", "ssv2") and list(names) != sorted(names):
            raise DataError(
                f"{category}: expected the classes of {OFFICIAL[name].title} in alphabetical order, by which "
                f"{file.name} numbers them"
            )
        return names
    if name == "ssv1" and format.raw and not official:
        raise DataError(
            f"{file} numbers the classes by the lines of something-something-v1-labels.csv, which is neither "
            f"in {root} nor in its labels or annotations"
        )
    if not official:
        return None
    names = OFFICIAL[name].classes(root)
    return tuple(sorted(names)) if name == "ssv1" and not format.raw else names
