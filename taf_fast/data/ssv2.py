"""Something-Something-V2 annotations, in both generations of file names."""

import os
from pathlib import Path

from .annotations import Sample, VideoDataset, check_id, check_split, field, load_entries, load_json
from .errors import DataError


def read_ssv2(root: str | os.PathLike, split: str) -> VideoDataset:
    """Reads the labels and the annotations of ``split`` ("train" or "validation").

    Json files are looked for in ``root`` and ``root/labels``, as ``something-something-v2-<name>.json`` or
    ``<name>.json``; videos are ``<id>.webm`` in ``root/20bn-something-something-v2``, ``root/videos`` or
    ``root``. Whether the videos exist is the scan's business. Raises DataError, naming the file and entry at
    fault.
    """
    check_split(split)
    root = Path(root)
    classes = _read_classes(_find_json(root, "labels"))
    index = {name: label for label, name in enumerate(classes)}
    folders = (root / "20bn-something-something-v2", root / "videos")
    videos = next((folder for folder in folders if folder.is_dir()), root)

    file = _find_json(root, split)
    samples: dict[str, Sample] = {}
    for number, entry in enumerate(load_entries(file)):
        where = f"{file}: entry {number}"
        name, template = field(entry, "id", str, where), field(entry, "template", str, where)
        check_id(name, samples, where)
        label = label_text(template)
        if label not in index:
            raise DataError(f"{where} (id {name!r}): {label!r} is not among the {len(index)} labels")
        samples[name] = Sample(name, videos / f"{name}.webm", index[label])
    return VideoDataset(root, split, classes, tuple(samples.values()), "ssv2")


def label_text(template: str) -> str:
    """The key of ``template`` in the labels file: its text without square brackets."""
    return template.replace("[", "").replace("]", "")


def json_candidates(root: Path, name: str) -> list[Path]:
    """Where the file of ``name`` ("labels" or a split) may be, best first."""
    names = (f"something-something-v2-{name}.json", f"{name}.json")
    return [folder / candidate for folder in (root, root / "labels") for candidate in names]


def _find_json(root: Path, name: str) -> Path:
    candidates = json_candidates(root, name)
    found = next((file for file in candidates if file.is_file()), None)
    if found is None:
        first, second = (file.name for file in candidates[:2])
        raise DataError(f"neither {first} nor {second} in {root} or {root / 'labels'}")
    return found


def _read_classes(file: Path) -> tuple[str, ...]:
    labels = load_json(file)
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
