"""Scanning the files of one clip.

Every function fills in ``facts`` and raises DataError at the first defect; ``facts`` keeps what is known.
"""

import errno
import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from pathlib import Path

import av
import numpy as np
from av import VideoFrame, VideoStream
from av.container import InputContainer
from av.video.reformatter import VideoReformatter

from taf_fast.data.clip import FrameFolder, Size, Source, VideoFile, different_size
from taf_fast.data.decoding.jpeg import picture_size
from taf_fast.data.decoding.pyav import (
    CONVERSION,
    intact,
    opened,
    packets_of,
    rotation_of,
    shown_frames,
    size_as_shown,
)
from taf_fast.data.scanning.h264 import has_whole_frames
from taf_fast.data.scanning.matroska import matroska_defect
from taf_fast.data.scanning.riff import riff_defect
from taf_fast.errors import DataError

# Pixels; a header that claims more is damaged, and nothing is allocated for it.
MAX_SIDE = 16384

# Codecs in which a packet is a frame that is shown, and containers that tell when.
_ONE_FRAME_A_PACKET = ("h264", "hevc", "vp9", "av1", "mjpeg", "prores")
_TIMED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
# A part of HEVC streams, after which decoders show nothing of frames that need earlier ones.
_END_OF_SEQUENCE = b"\0\0\0\2\x48\1"


@dataclass
class Facts:
    """The fields of a Clip that a scan finds out."""

    source: Source | None = None
    frames: int = 0
    size: Size = Size(0, 0)
    bytes: int = 0
    decoded: bool = False
    checksum: int | None = None
    defect: str | None = None


def probe(path: Path, facts: Facts, frames: tuple[int, int] | None = None, quick: bool = False) -> None:
    """Decodes a video file or the pictures in a folder. ``frames`` are the numbers of the first and the last
    picture to use; None means all.

    ``quick`` reads only containers and the first frame, and decodes the rest only if the container leaves
    doubt about the number of frames.
    """
    mode = _mode(path)
    if stat.S_ISDIR(mode):
        _probe_frames(path, facts, frames, quick)
    elif not stat.S_ISREG(mode):
        raise DataError(f"is {_special(mode)}, expected a file or a folder")
    elif frames:
        raise DataError("is a file, expected a folder: the annotations number its frames")
    else:
        _probe_video(path, facts, quick)


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        raise DataError("is a link that leads nowhere" if path.is_symlink() else "missing file") from None
    except NotADirectoryError:
        raise DataError("missing file") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DataError("is a link that leads in a circle") from None
        raise


def _special(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _probe_frames(folder: Path, facts: Facts, announced: tuple[int, int] | None, quick: bool) -> None:
    """If no frames are ``announced``, they count from 0 or from 1."""
    template, sizes = _list_frames(folder)
    first, last = announced or (0 if 0 in sizes else 1, max(sizes))
    used = [sizes[number] for number in sizes if first <= number <= last]
    facts.source = FrameFolder(template, first)
    facts.frames = len(used)
    facts.bytes = sum(used)
    for number in range(first, last + 1):
        name = template.format(number)
        if number not in sizes:
            where = f": the annotations say {first} to {last}, {len(used)} are there" if announced else ""
            raise DataError(f"missing frame {name}{where}")
        if not sizes[number]:
            raise DataError(f"frame {name} is empty")
    if not used:
        raise DataError("no frames, as the annotations say")
    facts.size = picture_size(folder / template.format(first))
    _check_size(facts.size)
    if not quick:
        for number in range(first, last + 1):
            found = picture_size(folder / template.format(number), whole=True)
            if found != facts.size:
                raise DataError(different_size(found, facts.size))
        facts.decoded = True


def _list_frames(folder: Path) -> tuple[str, dict[int, int]]:
    """The template of the frames' names, and their sizes in bytes by number.

    Names are like 00001.jpg, 000001.jpg or img_00001.jpg; other files, such as optical flow, are ignored.
    """
    files: dict[str, dict[int, int]] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            name = re.fullmatch(r"(img_)?(\d{5,6})\.jpg", entry.name, re.ASCII)
            if name:
                template = f"{name[1] or ''}{{:0{len(name[2])}d}}.jpg"
                found = entry.stat()
                # What is not a file is as good as an empty one.
                size = found.st_size if stat.S_ISREG(found.st_mode) else 0
                files.setdefault(template, {})[int(name[2])] = size
    if not files:
        raise DataError("no frames: a folder without 00001.jpg, 000001.jpg or img_00001.jpg")
    if len(files) > 1:
        first, second = sorted(template.format(min(sizes)) for template, sizes in files.items())[:2]
        raise DataError(f"frames are named in several ways: {first} and {second}")
    return files.popitem()


def _probe_video(path: Path, facts: Facts, quick: bool) -> None:
    facts.bytes = path.stat().st_size
    if not facts.bytes:
        raise DataError("empty file")
    with opened(path) as (container, stream):
        codec = stream.codec_context.name
        facts.source = VideoFile(codec)
        facts.size = Size(stream.height, stream.width)
        _check_size(facts.size)
        defect = (
            matroska_defect(path) or _missing_samples(container, stream, facts.bytes) or riff_defect(path)
        )
        if defect:
            raise DataError(defect)
        times = _frame_times(container, stream) if quick else None
    if times is not None:
        # If this fails, decoding everything tells why.
        with suppress(DataError), opened(path) as (container, stream):
            first = next(shown_frames(container, stream), None)
            if first is None or first.pts != min(times):
                raise DataError("does not begin with its first packet")
            facts.frames = len(times)
            facts.size = size_as_shown(first)
            facts.source = VideoFile(codec, first.format.name, rotation_of(first))
            return
    with opened(path) as (container, stream):
        _decode_all(path, container, stream, facts)


def _check_size(size: Size) -> None:
    if not (min(size) >= 1 and max(size) <= MAX_SIDE):
        raise DataError(f"has frames of {size} pixels, expected 1 to {MAX_SIDE} a side")


def _missing_samples(container: InputContainer, stream: VideoStream, length: int) -> str | None:
    """The defect of a file whose index refers to bytes beyond its end."""
    if not {"mov", "avi"} & set(container.format.name.split(",")):
        return None
    ends = [entry.pos + entry.size for entry in stream.index_entries]
    whole = sum(end <= length for end in ends)
    return f"truncated: {whole} of {len(ends)} frames" if whole < len(ends) else None


def _frame_times(container: InputContainer, stream: VideoStream) -> set[int] | None:
    """The times of the packets, if the container leaves no doubt that every packet is one frame."""
    codec = stream.codec_context.name
    sure = codec in _ONE_FRAME_A_PACKET and container.format.name in _TIMED
    if codec == "h264":
        sure &= has_whole_frames(stream.codec_context.extradata or b"")
    packets, times = 0, set()
    for packet in container.demux(stream):
        packets += bool(packet.size)
        if packet.size and packet.pts is not None and not packet.is_discard:
            times.add(packet.pts)
        if codec == "hevc" and _END_OF_SEQUENCE in bytes(packet):
            sure = False
    if not packets:
        raise DataError("no frames")
    return times if sure and len(times) == packets else None


def _decode_all(path: Path, container: InputContainer, stream: VideoStream, facts: Facts) -> None:
    """Counts the frames by decoding them, and finds out how they are shown."""
    alone = len(container.streams.video) == 1
    packet_times: list[int | None] = []
    times: list[int | None] = []
    formats: set[str] = set()
    rotation, late = 0, False
    for packet in packets_of(container, stream):
        if packet:
            packet_times.append(None if packet.is_discard else packet.pts)
        try:
            frames = stream.codec_context.decode(packet)
        except av.InvalidDataError:
            if times:
                raise
            late = True
            continue
        for frame in intact(frames):
            size = size_as_shown(frame)
            if not times:
                facts.size, rotation = size, rotation_of(frame)
                _check_size(size)
            elif size != facts.size:
                raise DataError(different_size(size, facts.size))
            elif rotation_of(frame) != rotation:
                raise DataError(f"has frames turned by {rotation_of(frame)} degrees, expected {rotation}")
            times.append(frame.pts)
            formats.add(frame.format.name)
    if not times:
        raise DataError("cannot be decoded: no frame comes out" if packet_times else "no frames")
    if late and not _only_begins_late(path):
        raise DataError("cannot be decoded: its first frames are damaged")
    facts.frames = len(times)
    facts.decoded = True
    ascending = all(a is not None and b is not None and a < b for a, b in pairwise(times))
    in_order = ascending and None not in packet_times and sorted(packet_times) == times  # type: ignore
    regular = alone and in_order and len(formats) == 1 and not late
    facts.source = VideoFile(stream.codec_context.name, formats.pop(), rotation, regular, late)


def _only_begins_late(path: Path) -> bool:
    """Whether a decoder that fills in what it cannot read shows the same frames as one that passes over the
    first packets it cannot decode."""
    reformatter = VideoReformatter()

    def pixels(frame: VideoFrame) -> np.ndarray:
        return reformatter.reformat(frame, **CONVERSION).to_ndarray()

    with opened(path) as (container, stream), opened(path, strict=False) as (other, same):
        pairs = zip_longest(shown_frames(container, stream, late=True), other.decode(same))
        return all(a and b and np.array_equal(pixels(a), pixels(b)) for a, b in pairs)
