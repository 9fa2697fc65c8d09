"""What can be known of a clip without decoding it.

Every function fills in ``facts``, the fields of a Clip, and raises DataError at the first defect, leaving
what is known by then.
"""

import os
import re
from pathlib import Path

import av
import numpy as np
from av.sidedata.sidedata import Type
from PIL import Image, UnidentifiedImageError

from .errors import DataError
from .pyav import decoded_frames

# What DALI decodes without a GPU; PyAV decodes the rest.
DALI_CODECS = ("vp8", "vp9", "mjpeg")


def probe(path: Path, facts: dict) -> None:
    """Looks at a video file or a folder of frames."""
    if path.is_dir():
        _probe_frames(path, facts)
    elif path.is_file():
        _probe_video(path, facts)
    else:
        raise DataError("missing file")


def _probe_frames(folder: Path, facts: dict) -> None:
    """Frames are 00001.jpg, 00002.jpg and so on; other names are not looked at."""
    sizes = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if re.fullmatch(r"\d{5}\.jpg", entry.name):
                sizes[int(entry.name[:5])] = entry.stat().st_size
    facts.update(codec="jpeg", frames=len(sizes), bytes=sum(sizes.values()), frame_name="{:05d}.jpg")
    if not sizes:
        raise DataError("no frames: a folder without 00001.jpg")
    for expected, number in enumerate(sorted(sizes), 1):
        if number != expected:
            raise DataError(f"frame {number:05d}.jpg comes where {expected:05d}.jpg is expected")
        if not sizes[number]:
            raise DataError(f"frame {number:05d}.jpg is empty")
    try:
        with Image.open(folder / "00001.jpg", formats=["JPEG"]) as image:
            facts["width"], facts["height"] = image.size
    except UnidentifiedImageError:
        raise DataError("frame 00001.jpg is not a JPEG picture") from None
    except OSError as error:
        raise DataError(f"frame 00001.jpg cannot be read: {error.strerror or error}") from error


def _probe_video(path: Path, facts: dict) -> None:
    facts["bytes"] = path.stat().st_size
    if not facts["bytes"]:
        raise DataError("empty file")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError("no video stream")
            stream = container.streams.video[0]
            codec = stream.codec_context.name if stream.codec_context else "unknown"
            facts.update(width=stream.width, height=stream.height, codec=codec)
            packets = [packet for packet in container.demux(stream) if packet.size]
            # An edit list can hide frames at the ends, which decoders then leave out.
            facts["frames"] = sum(not packet.is_discard for packet in packets)
            announced = stream.frames
            last = float(max((packet.pts or 0) * packet.time_base for packet in packets)) if packets else 0
            duration = (container.duration or 0) / av.time_base if len(container.streams) == 1 else 0
            webm = "webm" in container.format.name
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"cannot be opened: {error.strerror or error}") from error
    if not facts["frames"]:
        raise DataError("no frames")
    if codec == "unknown":
        raise DataError("its codec cannot be decoded")
    with path.open("rb") as file:
        size = matroska_size(file.read(4096))
    if size and facts["bytes"] < size:
        raise DataError(f"truncated: {facts['bytes']} of {size} bytes")
    if len(packets) < announced:
        raise DataError(f"truncated: {len(packets)} of {announced} frames")
    # WebM announces a duration instead of a number of frames; the tenth allows for uneven frames. The last
    # frame lasts as long as the others, which the only one does not tell.
    intervals = facts["frames"] - 1
    if not announced and intervals and last * (1 + 1 / intervals) < 0.9 * duration:
        raise DataError(f"breaks off after {last:.1f} of {duration:.1f} seconds")
    if not (webm and codec in DALI_CODECS):
        _probe_first_frame(path, facts)


def _probe_first_frame(path: Path, facts: dict) -> None:
    """Only decoded frames tell how they are to be shown."""
    with decoded_frames(path) as frames:
        first = next(frames, None)
    if first is None:
        raise DataError("cannot be decoded: no frame comes out")
    matrix = first.side_data.get(Type.DISPLAYMATRIX)
    if matrix is not None:
        a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
        if a * d - b * c < 0:
            raise DataError("is to be shown mirrored, expected at most a rotation")
    if first.rotation % 90:
        raise DataError(f"is rotated by {first.rotation} degrees, expected a multiple of 90")
    size = (first.width, first.height)
    facts["rotation"] = first.rotation % 360
    facts["width"], facts["height"] = size[::-1] if first.rotation % 180 else size


def matroska_size(head: bytes) -> int | None:
    """The file size in bytes that the first bytes of a Matroska or WebM file announce; None when they do not.

    Demuxers take a cut file for a shorter clip, so this is the only sign of a truncation.
    """

    def read_size(at: int) -> tuple[int | None, int]:
        # Variable-length number: leading zero bits count its further bytes; all ones mean "unknown".
        length = 9 - head[at].bit_length()
        mask = (1 << 7 * length) - 1
        value = int.from_bytes(head[at : at + length], "big") & mask
        return (None if value == mask else value), at + length

    if not head.startswith(b"\x1a\x45\xdf\xa3"):
        return None
    try:
        header, at = read_size(4)
        at += header or 0
        if head[at : at + 4] != b"\x18\x53\x80\x67":
            return None
        segment, at = read_size(at + 4)
    except IndexError:
        return None
    return None if segment is None else at + segment
