"""A data set decoded once: its frames as JPEG pictures in a few large files ("packs"), and an index.

The index is a header and one clip per line, as JSON: id, split, label, position in the data set, and either a
defect or the place of its pictures. Pictures are written to their pack before the line is added to the index,
so a kill leaves a shorter cache, which the next call continues. The last line marks the cache as complete.
"""

import os
import zlib
from array import array
from itertools import accumulate
from pathlib import Path
from typing import Any

from taf_fast.data.clip import Clip, FramePack, Size, VideoDataset
from taf_fast.data.formats.annotations import check_split, load_lines
from taf_fast.errors import DataError
from taf_fast.parsing import parse_json

INDEX = "taf_fast_cache.jsonl"
END = {"end": True}
_VERSION = 1


def is_cache(root: Path) -> bool:
    """Whether ``root`` holds a cache, finished or not."""
    return (root / INDEX).is_file()


def read_cache(root: str | os.PathLike, split: str) -> VideoDataset:
    """Reads a split, whose samples are Clips already, so that a scan has nothing to do.

    DataError if the cache is unfinished, has another version, or if bytes of its packs are missing.
    """
    check_split(split)
    root = Path(root)
    header, *lines = read_index(root)
    if not lines or lines[-1] != END:
        raise DataError(f"{root} is an unfinished cache: run taf-fast scan with --cache {root} to its end")
    lines = sorted(lines[:-1], key=lambda line: line["position"])
    clips = tuple(clip_of_line(root, line) for line in lines if line["split"] == split)
    ends: dict[Path, int] = {}
    for clip in clips:
        if isinstance(clip.source, FramePack):
            ends[clip.path] = max(ends.get(clip.path, 0), clip.source.offsets[-1])
    for path, end in ends.items():
        found = path.stat().st_size if path.is_file() else 0
        if found < end:
            raise DataError(f"{path} is truncated: {found} of at least {end} bytes")
    return VideoDataset(root, split, tuple(header["classes"]), clips, header["dataset"])


def difference(clip: Clip) -> str | None:
    """How the bytes of a clip in a cache differ from the index; None if they do not."""
    if clip.defect is not None or not isinstance(clip.source, FramePack):
        return None
    try:
        with clip.path.open("rb") as pack:
            pack.seek(clip.source.offsets[0])
            found = zlib.crc32(pack.read(clip.bytes))
    except OSError as error:
        return f"{clip.path.name} cannot be read: {error.strerror or error}"
    if found == clip.checksum:
        return None
    return (
        f"has other bytes in {clip.path.name} than were written: CRC-32 {found:08x}, not {clip.checksum:08x}"
    )


def header_of(dataset: VideoDataset) -> dict:
    """The first line of the index."""
    return {"taf_fast_cache": _VERSION, "dataset": dataset.name, "classes": list(dataset.classes)}


def read_index(root: Path) -> list[dict]:
    """The lines of the index, except a last one torn by a kill; DataError if another line is damaged, or for
    an index of another version."""
    file = root / INDEX
    numbered = load_lines(file)
    lines: list[dict] = []
    for number, text in numbered:
        try:
            line = parse_json(text)
            if not lines and not _is_header(line):
                break
            lines.append(_checked(line, lines[0]) if lines else line)
        except ValueError:
            if number < numbered[-1][0]:
                raise DataError(f"{file}: line {number} is damaged") from None
    if not lines:
        raise DataError(f"{file} is not the index of a cache of version {_VERSION}: write the cache again")
    return lines


def _is_header(line: Any) -> bool:
    if not isinstance(line, dict) or line.get("taf_fast_cache") != _VERSION:
        return False
    classes = line.get("classes")
    texts = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    return texts and isinstance(line.get("dataset"), str)


def _checked(line: Any, header: dict) -> dict:
    """A line after the header; ValueError unless it is the end, or has all that is known of a clip."""
    if line == END:
        return line
    if not isinstance(line, dict):
        raise ValueError("not an object")
    texts, counts = ["split", "id"], ["label", "position"]
    sizes: Any = []
    if "defect" in line:
        texts.append("defect")
    else:
        counts += ["pack", "start", "width", "height", "checksum"]
        sizes = line.get("sizes")
    if not isinstance(sizes, list) or "source" not in line:
        raise ValueError("a value is missing")
    numbers = [*map(line.get, counts), *sizes]
    if not all(isinstance(line.get(name), str) for name in texts) or not all(
        type(number) is int and 0 <= number < 2**40 for number in numbers
    ):
        raise ValueError("a value is missing or impossible")
    if line["label"] >= len(header["classes"]):
        raise ValueError("no such class")
    return line


def clip_of_line(root: Path, line: dict) -> Clip:
    """The clip that a line of the index describes."""
    if "defect" in line:
        return Clip(line["id"], root, line["label"], defect=line["defect"], left_out=True)
    sizes = line["sizes"]
    return Clip(
        line["id"],
        pack_file(root, line["pack"]),
        line["label"],
        FramePack(array("q", accumulate(sizes, initial=line["start"]))),
        frames=len(sizes),
        size=Size(line["height"], line["width"]),
        bytes=sum(sizes),
        checksum=line["checksum"],
    )


def pack_file(root: Path, number: int) -> Path:
    return root / f"frames-{number:05d}.jpegs"
