"""Decoding video files with PyAV; nothing is concealed or guessed."""

import heapq
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from taf_fast.data.errors import DataError, different_size

# What DALI does to VP9: bilinear chroma with accurate rounding, always the BT.601 matrix, full range.
CONVERSION = {
    "format": "rgb24",
    "interpolation": 0x42002,
    "src_colorspace": 5,
    "dst_colorspace": 5,
    "dst_color_range": 2,
}
# Codecs in which many frames serve no other frame, and whose decoders can leave those out.
_SKIPPING = ("h264", "hevc")
_DAMAGED = "cannot be decoded: damaged frames"


@contextmanager
def decoded_frames(path: Path) -> Iterator[Iterator[av.VideoFrame]]:
    """The frames of the first video stream in the order they are shown in, on one thread.

    DataError when the file cannot be opened, or a frame cannot be decoded or is missing.
    """
    with _opened(path) as (container, stream):
        yield _all_frames(container, stream)


def decode_video_crops(
    path: Path,
    frames: np.ndarray,
    box: tuple[int, int, int, int],
    size: tuple[int, int],
    rotation: int,
) -> np.ndarray:
    """Crops ``box`` (y, x, height, width) of ``frames`` (int ``[T]``, 0-based), uint8 ``[T, h, w, 3]`` RGB.

    ``size`` is the (height, width) that frames must have after turning them ``rotation`` degrees
    counter-clockwise. Decodes to the last wanted frame and no further. DataError when that fails.
    """
    y, x, height, width = box
    crops = np.empty((len(frames), height, width, 3), np.uint8)
    reformatter = VideoReformatter()
    with _opened(path) as (container, stream):
        for index, frame in _wanted_frames(container, stream, set(frames.tolist())):
            picture = _to_rgb(reformatter, frame, rotation)
            if picture.shape[:2] != size:
                raise DataError(different_size(picture.shape[:2], size))
            crops[frames == index] = picture[y : y + height, x : x + width]
    return crops


def decode_video(path: Path, rotation: int) -> Iterator[np.ndarray]:
    """All frames, RGB uint8 ``[height, width, 3]``, turned by ``rotation``; DataError when one is damaged."""
    reformatter = VideoReformatter()
    with decoded_frames(path) as frames:
        for frame in frames:
            yield _to_rgb(reformatter, frame, rotation)


def _to_rgb(reformatter: VideoReformatter, frame: av.VideoFrame, rotation: int) -> np.ndarray:
    return np.rot90(reformatter.reformat(frame, **CONVERSION).to_ndarray(), rotation // 90)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video or not container.streams.video[0].codec_context:
                raise DataError("cannot be decoded: no video stream of a known codec")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            # Otherwise decoders fill in what they cannot read.
            stream.codec_context.options = {"err_detect": "explode"}
            yield container, stream
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"cannot be decoded: {error.strerror or error}") from error


def _all_frames(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    # Frames come in the order of their times: a packet whose turn passes was not decoded. Some containers
    # do not tell the times.
    times: list[int] = []
    timed = True
    for packet in container.demux(stream):
        if _is_shown(packet):
            timed = timed and packet.pts is not None
            if timed:
                heapq.heappush(times, packet.pts)
        for frame in packet.decode():
            skipped = timed and not (times and frame.pts == heapq.heappop(times))
            if frame.is_corrupt or skipped:
                raise DataError(_DAMAGED)
            yield frame


def _wanted_frames(
    container: av.container.InputContainer, stream: av.VideoStream, wanted: set[int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """The ``wanted`` frames with their indices; DataError when there are fewer."""
    if stream.codec_context.name in _SKIPPING:
        packets = list(container.demux(stream))
        times = [packet.pts for packet in packets if _is_shown(packet)]
        if None not in times:
            yield from _timed_frames(stream, packets, sorted(times), wanted)
            return
        container.seek(0)
    last, index = max(wanted), -1
    for index, frame in enumerate(_all_frames(container, stream)):
        if index in wanted:
            yield index, frame
        if index == last:
            return
    raise _too_few(index + 1, wanted)


def _timed_frames(
    stream: av.VideoStream, packets: list[av.Packet], times: list[int], wanted: set[int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """The same without the frames that serve no wanted one; ``times`` are those of all frames."""
    if len(times) <= max(wanted):
        raise _too_few(len(times), wanted)
    due = {times[index]: index for index in wanted}
    for packet in packets:
        stream.codec_context.skip_frame = "DEFAULT" if packet.pts in due else "NONREF"
        for frame in packet.decode():
            if frame.is_corrupt:
                raise DataError(_DAMAGED)
            if frame.pts in due:
                yield due.pop(frame.pts), frame
        if not due:
            return
    raise DataError(_DAMAGED)


def _is_shown(packet: av.Packet) -> bool:
    # Empty ones end the stream; an edit list can hide frames.
    return bool(packet.size) and not packet.is_discard


def _too_few(found: int, wanted: set[int]) -> DataError:
    return DataError(f"cannot be decoded: {found} frames come out, expected at least {max(wanted) + 1}")
