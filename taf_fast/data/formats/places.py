"""The places where the files of a data set may be in its folder."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from taf_fast.data.clip import Sample
from taf_fast.errors import DataError

_FOLDERS = ("", "labels", "annotations")
VIDEO_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *(
            "3g2",
            "3gp",
            "asf",
            "avi",
            "divx",
            "dv",
            "f4v",
            "flv",
            "h264",
            "hevc",
            "ivf",
            "m1v",
            "m2t",
            "m2ts",
        ),
        *(
            "m2v",
            "m4v",
            "mj2",
            "mjpeg",
            "mjpg",
            "mkv",
            "mov",
            "mp4",
            "mpe",
            "mpeg",
            "mpg",
            "mts",
            "mxf",
            "nut",
        ),
        *("obu", "ogm", "ogv", "qt", "rm", "rmvb", "ts", "vob", "webm", "wmv", "xvid", "y4m"),
    )
)
# Looking for this many clips shows where all of them are: the data sets have hundreds of thousands.
_LOOKED_UP = 64


def annotation_files(root: Path, *names: str) -> list[Path]:
    """Places of a file called one of ``names``, best first: ``root``, its ``labels`` and ``annotations``."""
    return [root / folder / name for folder in _FOLDERS for name in names]


def find_annotations(root: Path, *names: str) -> Path:
    """The first of ``annotation_files`` that exists; DataError if none does."""
    found = next((file for file in annotation_files(root, *names) if file.is_file()), None)
    if found is None:
        raise DataError(f"no {' nor '.join(names)} in {root}, its labels or its annotations")
    return found


def find_clips(root: Path, templates: Sequence[str], names: Sequence[str]) -> str:
    """Which of ``templates`` ("videos/{}", relative to ``root``) leads to the clips called ``names``.

    It is the first template with which one of up to 64 clips, spread over ``names``, exists. Without such a
    clip, it is the first whose folder exists, or else the first; the scan then reports the missing clips.
    """
    some = names[:: len(names) // _LOOKED_UP + 1]
    for template in templates:
        if any(os.path.exists(root / template.format(name)) for name in some):
            return template
    return next((template for template in templates if (root / template).parent.is_dir()), templates[0])


def place_clips(
    root: Path, videos: Sequence[str], suffix: str, frames: Sequence[str], labels: Mapping[str, int]
) -> tuple[Sample, ...]:
    """One sample for each key of ``labels``: a video, or if there are none a folder of frames.

    ``videos`` and ``frames`` are the folders in ``root`` that may hold them, best first. Of several videos of
    one name, the one with ``suffix`` counts.
    """
    for folder in videos:
        files = _videos(root / folder, suffix)
        if not files.keys().isdisjoint(labels):
            return tuple(
                Sample(name, root / folder / files.get(name, name + suffix), label)
                for name, label in labels.items()
            )
    templates = [os.path.join(folder, "{}" + suffix) for folder in videos]
    templates += [os.path.join(folder, "{}") for folder in frames]
    template = find_clips(root, templates, tuple(labels))
    return tuple(Sample(name, root / template.format(name), label) for name, label in labels.items())


def _videos(folder: Path, suffix: str) -> dict[str, str]:
    """The names of the videos in ``folder`` by their names without suffix."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
    except OSError:
        return {}
    found: dict[str, str] = {}
    for name in sorted(names, key=lambda name: (not name.endswith(suffix), name)):
        stem, extension = os.path.splitext(name)
        if extension.lower() in VIDEO_SUFFIXES:
            found.setdefault(stem, name)
    return found
