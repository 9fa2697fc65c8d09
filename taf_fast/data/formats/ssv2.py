"""Something-Something-V2 annotations, under their old and new file names."""

import os
import re
from pathlib import Path

from taf_fast.data.clip import VideoDataset
from taf_fast.data.formats.annotations import check_id, check_split, field, load_entries, load_json
from taf_fast.data.formats.places import annotation_files, find_annotations, place_clips
from taf_fast.errors import DataError

_VIDEOS = ("20bn-something-something-v2", "videos", "")
_FRAMES = (
    "20bn-something-something-v2-frames",
    "rawframes",
    "frames",
    "20bn-something-something-v2",
    "videos",
    "",
)


def read_ssv2(root: str | os.PathLike, split: str) -> VideoDataset:
    """Reads the labels and the annotations of ``split`` ("train" or "validation").

    The files are ``something-something-v2-<name>.json`` or ``<name>.json`` in ``root``, ``root/labels`` or
    ``root/annotations``. Videos are ``<id>.webm``, or another video suffix, in
    ``root/20bn-something-something-v2``, ``root/videos`` or ``root``. If there are none, clips are folders
    ``<id>`` of extracted frames in ``root/20bn-something-something-v2-frames``, ``root/rawframes``,
    ``root/frames`` or where videos would be. The scan finds out whether every clip exists. DataError names
    the file and entry at fault.
    """
    check_split(split)
    root = Path(root)
    classes = ssv2_classes(root)
    index = {name: label for label, name in enumerate(classes)}
    file = find_annotations(root, *_json(split))
    labels: dict[str, int] = {}
    for number, entry in enumerate(load_entries(file)):
        where = f"{file}: entry {number}"
        name, template = field(entry, "id", str, where), field(entry, "template", str, where)
        check_id(name, labels, where)
        label = label_text(template)
        if label not in index:
            raise DataError(f"{where} (id {name!r}): {label!r} is not among the {len(index)} labels")
        labels[name] = index[label]
    return VideoDataset(root, split, classes, place_clips(root, _VIDEOS, ".webm", _FRAMES, labels), "ssv2")


def label_text(template: str) -> str:
    """The name of the class of ``template`` in the labels file: the text without square brackets."""
    return template.replace("[", "").replace("]", "")


def labels_files(root: Path) -> list[Path]:
    """The files that may hold the class names, best first."""
    return annotation_files(root, *_json("labels"))


def ssv2_classes(root: Path) -> tuple[str, ...]:
    """The class names by index."""
    file = find_annotations(root, *_json("labels"))
    labels = load_json(file)
    if not isinstance(labels, dict):
        raise DataError(f"{file}: expected an object of label: index, got {type(labels).__name__}")
    by_index: dict[int, str] = {}
    for label, value in labels.items():
        if not isinstance(value, str) or not re.fullmatch(r"\s*[0-9]{1,9}\s*", value):
            raise DataError(f'{file}: label {label!r}: expected an index such as "17", got {value!r}')
        by_index[int(value)] = label.strip()
    if not labels or sorted(by_index) != list(range(len(labels))):
        raise DataError(f"{file}: the indices of {len(labels)} labels must be 0..n-1, each once")
    return tuple(by_index[index] for index in range(len(by_index)))


def _json(name: str) -> tuple[str, str]:
    return f"something-something-v2-{name}.json", f"{name}.json"
