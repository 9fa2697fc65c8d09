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

from taf_fast.data.decoding.pyav import decoded_frames
from taf_fast.data.errors import DataError

from .matroska import matroska_defect

# What DALI decodes without a GPU; PyAV decodes the rest.
DALI_CODECS = ("vp8", "vp9", "mjpeg")

# Pixels; what claims more is taken for a damaged header, before anything is allocated for it.
MAX_SIDE = 16384


def probe(path: Path, facts: dict, frames: tuple[int, int] | None = None) -> None:
    """Looks at a video file, or at a folder, in which ``frames`` are the numbers of the first and the last to
    use; None for all there are."""
    if path.is_dir():
        _probe_frames(path, facts, frames)
    elif not path.is_file():
        raise DataError("missing file")
    elif frames:
        raise DataError("is a file, expected a folder: the annotations number its frames")
    else:
        _probe_video(path, facts)


def _probe_frames(folder: Path, facts: dict, announced: tuple[int, int] | None) -> None:
    """Where they are not ``announced``, frames count from 0 or from 1."""
    facts["codec"] = "jpeg"
    template, sizes = _list_frames(folder)
    first, last = announced or (0 if 0 in sizes else 1, max(sizes))
    used = [sizes[number] for number in sizes if first <= number <= last]
    facts.update(frames=len(used), bytes=sum(used), frame_name=template, first_frame=first)
    for number in range(first, last + 1):
        name = template.format(number)
        if number not in sizes:
            where = f": the annotations say {first} to {last}, {len(used)} are there" if announced else ""
            raise DataError(f"missing frame {name}{where}")
        if not sizes[number]:
            raise DataError(f"frame {name} is empty")
    if not used:
        raise DataError("no frames, as the annotations say")
    name = template.format(first)
    try:
        with Image.open(folder / name, formats=["JPEG"]) as image:
            facts["width"], facts["height"] = image.size
        _check_size(facts)
    except Image.DecompressionBombError as error:
        raise DataError(f"frame {name} is too large: {error}") from None
    except UnidentifiedImageError:
        raise DataError(f"frame {name} is not a JPEG picture") from None
    except OSError as error:
        raise DataError(f"frame {name} cannot be read: {error.strerror or error}") from error


def _list_frames(folder: Path) -> tuple[str, dict[int, int]]:
    """The template of the frames' names, and their sizes in bytes by number.

    They may be called 00001.jpg, 000001.jpg or img_00001.jpg; other files, optical flow say, are ignored.
    """
    files: dict[str, dict[int, int]] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            name = re.fullmatch(r"(img_)?(\d{5,6})\.jpg", entry.name, re.ASCII)
            if name:
                template = f"{name[1] or ''}{{:0{len(name[2])}d}}.jpg"
                files.setdefault(template, {})[int(name[2])] = entry.stat().st_size
    if not files:
        raise DataError("no frames: a folder without 00001.jpg, 000001.jpg or img_00001.jpg")
    if len(files) > 1:
        first, second = sorted(template.format(min(sizes)) for template, sizes in files.items())[:2]
        raise DataError(f"frames are named in several ways: {first} and {second}")
    return files.popitem()


def _probe_video(path: Path, facts: dict) -> None:
    facts["bytes"] = path.stat().st_size
    if not facts["bytes"]:
        raise DataError("empty file")
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                raise DataError("no video stream")
            stream = container.streams.video[0]
            if not stream.codec_context:
                raise DataError("its codec cannot be decoded")
            codec = stream.codec_context.name
            facts.update(width=stream.width, height=stream.height, codec=codec)
            _check_size(facts)
            # Not the packets themselves, which hold the whole file. An edit list can hide frames at the ends,
            # which decoders then leave out.
            packets, shown = 0, []
            for packet in container.demux(stream):
                if packet.size:
                    packets += 1
                    if not packet.is_discard:
                        shown.append((packet.pts, packet.is_keyframe))
            facts.update(frames=len(shown), keyframes=_keyframes(shown))
            announced = stream.frames
            webm = "webm" in container.format.name
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"cannot be opened: {error.strerror or error}") from error
    if not facts["frames"]:
        raise DataError("no frames")
    defect = matroska_defect(path)
    if defect:
        raise DataError(defect)
    if packets < announced:
        raise DataError(f"truncated: {packets} of {announced} frames")
    if not (webm and codec in DALI_CODECS):
        _probe_first_frame(path, facts)


def _check_size(facts: dict) -> None:
    width, height = facts["width"], facts["height"]
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise DataError(f"has frames of {width} x {height} pixels, expected 1 to {MAX_SIDE} a side")


def _keyframes(packets: list[tuple[int | None, bool]]) -> tuple[int, ...] | None:
    """``packets`` are (time, is a keyframe) in the order of decoding, which without times tells no order of
    display."""
    if any(time is None for time, _ in packets):
        return None
    packets = sorted(packets, key=lambda packet: packet[0])
    return tuple(index for index, (_, is_keyframe) in enumerate(packets) if is_keyframe)


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
