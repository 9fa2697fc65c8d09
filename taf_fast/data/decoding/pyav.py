"""Decoding video files with PyAV, without concealing damage or guessing.

Frame i of a video is the i-th frame that FFmpeg's decoder gives for the file's main stream, counted from 0,
whatever its time stamps say: times can be equal, start again in the middle, or follow another order.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from taf_fast.data.clip import Box, Clip, Size, VideoFile, different_size
from taf_fast.errors import DataError

# As DALI converts VP9: bilinear chroma with accurate rounding, always the BT.601 matrix, full range.
CONVERSION: dict[str, Any] = {
    "format": "rgb24",
    "interpolation": 0x42002,
    "src_colorspace": 5,
    "dst_colorspace": 5,
    "dst_color_range": 2,
}


# Codecs of pictures: a stream of a single one is a cover.
_PICTURES = ("mjpeg", "png", "bmp", "gif", "webp")


@contextmanager
def opened(path: Path, strict: bool = True) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The container and its main video stream, set up to decode on one thread; unless ``strict``, decoders
    fill in what they cannot read.

    The main stream is the first video stream that is not a cover, or else the first of all. DataError if the
    file cannot be opened, has no video, or fails in the ``with`` block.
    """
    with _container(path) as container:
        videos = container.streams.video
        if not videos:
            raise DataError("no video stream")
        if not videos[0].codec_context:
            raise DataError("its codec cannot be decoded")
        stream = videos[0] if len(videos) == 1 else videos[_main(path, videos)]
        stream.codec_context.thread_count = 1
        if strict:
            stream.codec_context.options = {"err_detect": "explode"}
        try:
            yield container, stream
        except (av.FFmpegError, OSError) as error:
            raise DataError(f"cannot be decoded: {error.strerror or error}") from error


def _container(path: Path) -> av.container.InputContainer:
    try:
        # Without the protocol, a name with a colon would be taken for an address.
        return av.open(f"file:{path}", metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"cannot be opened: {error.strerror or error}") from error


def _main(path: Path, videos: Sequence[av.VideoStream]) -> int:
    """The position of the main stream among several."""
    decodable = [stream for stream in videos if stream.codec_context]
    # Not all containers say how many frames a stream has.
    uncounted = {
        stream.index for stream in decodable if not stream.frames and stream.codec_context.name in _PICTURES
    }
    single = {stream.index for stream in decodable if stream.frames == 1} | _single(path, uncounted)

    def cover(stream: av.VideoStream) -> tuple[bool, bool]:
        return bool(stream.disposition & Disposition.attached_pic), stream.index in single

    return videos.index(min(decodable, key=cover))


def _single(path: Path, streams: set[int]) -> set[int]:
    """Which of ``streams``, by their indices, have at most one packet."""
    if not streams:
        return set()
    packets = dict.fromkeys(streams, 0)
    with _container(path) as container, suppress(av.FFmpegError):
        for packet in container.demux(*streams):
            packets[packet.stream.index] += bool(packet.size)
            if min(packets.values()) > 1:
                break
    return {index for index, count in packets.items() if count <= 1}


def intact(frames: Iterable[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """The ``frames``; DataError at the first that the decoder marks as damaged."""
    for frame in frames:
        if frame.is_corrupt:
            raise DataError("cannot be decoded: damaged frames")
        yield frame


def packets_of(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet | None]:
    """The packets that are to be decoded, and at the end None, which makes the decoder show its last frames.

    Packets without data stand for frames that were dropped when the file was recorded.
    """
    yield from (packet for packet in container.demux(stream) if packet.size)
    yield None


def shown_frames(
    container: av.container.InputContainer, stream: av.VideoStream, late: bool = False
) -> Iterator[av.VideoFrame]:
    """The frames in the order the decoder shows them; DataError at the first damaged one.

    ``late`` passes over packets that cannot be decoded before the first frame: streams that begin in the
    middle of another have some.
    """
    begun = False
    for packet in packets_of(container, stream):
        try:
            frames = stream.codec_context.decode(packet)
        except av.InvalidDataError:
            if begun or not late:
                raise
            continue
        for frame in intact(frames):
            begun = True
            yield frame


def rotation_of(frame: av.VideoFrame) -> int:
    """The degrees (0, 90, 180 or 270, counter-clockwise) by which players turn ``frame``.

    DataError if they would mirror it or turn it by other angles.
    """
    matrix = frame.side_data.get(Type.DISPLAYMATRIX)  # type: ignore[call-overload]
    if matrix is None:
        return 0
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if a * d - b * c < 0:
        raise DataError("is to be shown mirrored, expected at most a rotation")
    # Not frame.rotation, which cuts an angle such as 89.99 and does not know what to do with zeros only.
    degrees = round(math.degrees(math.atan2(-b, a)))
    if degrees % 90:
        raise DataError(f"is rotated by {degrees} degrees, expected a multiple of 90")
    return degrees % 360


def size_as_shown(frame: av.VideoFrame) -> Size:
    """The size of ``frame`` after turning it; DataError as from ``rotation_of``."""
    if rotation_of(frame) % 180:
        return Size(frame.width, frame.height)
    return Size(frame.height, frame.width)


def decode_video_crops(clip: Clip, source: VideoFile, frames: np.ndarray, box: Box) -> np.ndarray:
    """Crops of ``frames`` (int ``[T]``, counted from 0) of the file ``source`` of ``clip``, turned as they
    are shown, RGB uint8 ``[T, h, w, 3]``.

    Decoding stops at the last wanted frame. DataError if it fails, and if frames are not of the clip's size
    or rotation.
    """
    wanted = set(frames.tolist())
    rows, columns = slice(box.y, box.y + box.height), slice(box.x, box.x + box.width)
    convert = _Converter(clip.size, source.rotation)
    found: dict[int, np.ndarray] = {}
    # H.264 marks the frames that no other frame needs, and in a regular file times tell which are wanted.
    if source.regular and source.codec == "h264":
        with opened(clip.path) as (container, stream):
            for index, frame in _needed_frames(container, stream, wanted):
                found[index] = convert(frame)[rows, columns]
    if len(found) < len(wanted):
        found = {}
        with opened(clip.path) as (container, stream):
            count = 0
            for count, frame in enumerate(shown_frames(container, stream, source.late), 1):
                if count - 1 in wanted:
                    found[count - 1] = convert(frame)[rows, columns]
                if len(found) == len(wanted):
                    break
            else:
                raise DataError(
                    f"cannot be decoded: {count} frames come out, expected at least {max(wanted) + 1}"
                )
    # Turned frames are views in another memory order.
    return np.ascontiguousarray(np.stack([found[index] for index in frames.tolist()]))


def decode_video(clip: Clip, source: VideoFile) -> Iterator[np.ndarray]:
    """All frames of the file ``source`` of ``clip``, turned as they are shown, RGB uint8 ``[h, w, 3]``;
    DataError as from ``decode_video_crops``."""
    convert = _Converter(clip.size, source.rotation)
    with opened(clip.path) as (container, stream):
        for frame in shown_frames(container, stream, source.late):
            yield convert(frame)


class _Converter:
    """Converts frames to RGB uint8 ``[h, w, 3]``; DataError for other sizes and rotations than these."""

    def __init__(self, size: Size, rotation: int):
        self._size = size
        self._rotation = rotation
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        rotation = rotation_of(frame)
        if rotation != self._rotation:
            raise DataError(f"has frames turned by {rotation} degrees, expected {self._rotation}")
        found = size_as_shown(frame)
        if found != self._size:
            raise DataError(different_size(found, self._size))
        return np.rot90(self._reformatter.reformat(frame, **CONVERSION).to_ndarray(), rotation // 90)


def _needed_frames(
    container: av.container.InputContainer, stream: av.VideoStream, wanted: set[int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """The ``wanted`` frames of a regular file with their indices, without decoding frames that no other frame
    needs; fewer if the file turns out to be another."""
    packets = [packet for packet in container.demux(stream) if packet.size]
    times = sorted(packet.pts for packet in packets if packet.pts is not None)
    if len(set(times)) < len(packets) or len(times) <= max(wanted):
        return
    due = {times[index]: index for index in wanted}
    for packet in [*packets, None]:
        needed = packet is None or packet.pts in due
        stream.codec_context.skip_frame = "DEFAULT" if needed else "NONREF"
        for frame in intact(stream.codec_context.decode(packet)):
            if frame.pts in due:
                yield due.pop(frame.pts), frame
        if not due:
            return
