"""The data sets in their published form."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from taf_fast.data.clip import VideoDataset
from taf_fast.data.formats import diving48, ssv1, ssv2
from taf_fast.errors import DataError


@dataclass(frozen=True)
class Official:
    """A data set: its title, its reader, the files that may hold the class names, and the class names in the
    order of that file."""

    title: str
    read: Callable[[Path, str], VideoDataset]
    labels_files: Callable[[Path], list[Path]]
    classes: Callable[[Path], tuple[str, ...]]


OFFICIAL = {
    "ssv1": Official("Something-Something V1", ssv1.read_ssv1, ssv1.labels_files, ssv1.raw_ssv1_classes),
    "ssv2": Official("Something-Something V2", ssv2.read_ssv2, ssv2.labels_files, ssv2.ssv2_classes),
    "diving48": Official(
        "Diving48", diving48.read_diving48, diving48.labels_files, diving48.diving48_classes
    ),
}


def find_official(root: Path) -> str | None:
    """The data set (a key of OFFICIAL) whose file of class names is in ``root``; DataError for several."""
    found = {}
    for name, official in OFFICIAL.items():
        files = [file for file in official.labels_files(root) if file.is_file()]
        if files:
            found[name] = files[0]
    if len(found) > 1:
        raise DataError(f"expected one data set, found several: {', '.join(map(str, found.values()))}")
    return next(iter(found), None)
