"""A data set decoded once: its frames as JPEG pictures in few large files ("packs"), beside an index.

The index is a header and one clip per line, as JSON: id, split, label, position in the data set and either a
defect or where its pictures are. They are in their pack before the line is in the index, so what a kill
leaves is a shorter cache, which the next call goes on with; the last line says that all clips are there.
"""

import json
import os
import zlib
from array import array
from itertools import accumulate
from pathlib import Path

from .errors import DataError
from .formats.annotations import VideoDataset, check_split, load_lines
from .scanning.manifest import Clip

INDEX = "taf_fast_cache.jsonl"
END = {"end": True}
_VERSION = 1


def is_cache(root: Path) -> bool:
    """Whether ``root`` holds a cache, finished or not."""
    return (root / INDEX).is_file()


def read_cache(root: str | os.PathLike, split: str) -> VideoDataset:
    """Reads a split; the samples are Clips already, so that no scan needs to look at them.

    DataError when the cache is unfinished, of another version, or lacks bytes of its packs.
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
        if clip.offsets is not None:
            ends[clip.path] = max(ends.get(clip.path, 0), clip.offsets[-1])
    for path, end in ends.items():
        found = path.stat().st_size if path.is_file() else 0
        if found < end:
            raise DataError(f"{path} is truncated: {found} of at least {end} bytes")
    return VideoDataset(root, split, tuple(header["classes"]), clips, header["dataset"])


def difference(clip: Clip) -> str | None:
    """What the bytes of a clip of a cache differ in from the index; None for nothing."""
    if clip.defect is not None:
        return None
    try:
        with clip.path.open("rb") as pack:
            pack.seek(clip.offsets[0])
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
    """The lines of the index, of which the last may have been torn by a kill and is then left out; DataError
    when another is damaged, or for an index of another version."""
    file = root / INDEX
    lines = []
    numbered = load_lines(file)
    for number, text in numbered:
        try:
            lines.append(json.loads(text))
        except ValueError:
            if number < numbered[-1][0]:
                raise DataError(f"{file}: line {number} is damaged") from None
    if not lines or lines[0].get("taf_fast_cache") != _VERSION:
        raise DataError(f"{file} is not the index of a cache of version {_VERSION}: write it anew")
    return lines


def clip_of_line(root: Path, line: dict) -> Clip:
    """The clip of a line of the index."""
    if "defect" in line:
        return Clip(line["id"], root, line["label"], codec="jpeg", defect=line["defect"])
    sizes = line["sizes"]
    return Clip(
        line["id"],
        pack_file(root, line["pack"]),
        line["label"],
        frames=len(sizes),
        width=line["width"],
        height=line["height"],
        codec="jpeg",
        bytes=sum(sizes),
        checksum=line["checksum"],
        offsets=array("q", accumulate(sizes, initial=line["start"])),
    )


def pack_file(root: Path, number: int) -> Path:
    return root / f"frames-{number:05d}.jpegs"
