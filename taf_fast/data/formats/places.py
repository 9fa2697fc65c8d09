"""Where the files of a data set may lie in its folder."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from taf_fast.data.errors import DataError

from .annotations import Sample

_FOLDERS = ("", "labels", "annotations")
# So many clips tell where all of them are: the data sets have hundreds of thousands.
_LOOKED_UP = 64


def annotation_files(root: Path, *names: str) -> list[Path]:
    """Where a file of one of ``names`` may be, best first: ``root``, its ``labels`` or ``annotations``."""
    return [root / folder / name for folder in _FOLDERS for name in names]


def find_annotations(root: Path, *names: str) -> Path:
    """The first of ``annotation_files`` that is there; DataError when none is."""
    found = next((file for file in annotation_files(root, *names) if file.is_file()), None)
    if found is None:
        raise DataError(f"no {' nor '.join(names)} in {root}, its labels or its annotations")
    return found


def find_clips(root: Path, templates: Sequence[str], names: Sequence[str]) -> str:
    """Which of ``templates`` ("videos/{}.webm", relative to ``root``) leads to the clips called ``names``.

    It is the first by which one of up to 64 clips, picked from all of ``names``, is there. Where there is no
    such clip it is the first whose folder is there, or else the first; the scan then names what is missing.
    """
    some = names[:: len(names) // _LOOKED_UP + 1]
    for template in templates:
        if any(os.path.exists(root / template.format(name)) for name in some):
            return template
    return next((template for template in templates if (root / template).parent.is_dir()), templates[0])


def place_clips(root: Path, templates: Sequence[str], labels: Mapping[str, int]) -> tuple[Sample, ...]:
    """The samples called as the keys of ``labels``, with clips where ``find_clips`` finds them."""
    template = find_clips(root, templates, tuple(labels))
    return tuple(Sample(name, root / template.format(name), label) for name, label in labels.items())
