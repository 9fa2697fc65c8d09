"""Decoding with PyAV what DALI does not decode without a GPU; nothing is concealed or guessed."""

import heapq
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from .errors import DataError, different_size

# What DALI does to VP9: bilinear chroma with accurate rounding, always the BT.601 matrix, full range.
CONVERSION = {
    "format": "rgb24",
    "interpolation": 0x42002,
    "src_colorspace": 5,
    "dst_colorspace": 5,
    "dst_color_range": 2,
}


@contextmanager
def decoded_frames(path: Path) -> Iterator[Iterator[av.VideoFrame]]:
    """The frames of the first video stream in the order they are shown in, on one thread.

    DataError when the file cannot be opened, or a frame cannot be decoded or is missing.
    """
    try:
        with av.open(str(path)) as container:
            yield _frames(container)
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"cannot be decoded: {error.strerror or error}") from error


def _frames(container: av.container.InputContainer) -> Iterator[av.VideoFrame]:
    if not container.streams.video or not container.streams.video[0].codec_context:
        raise DataError("cannot be decoded: no video stream of a known codec")
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    # Otherwise decoders fill in what they cannot read.
    stream.codec_context.options = {"err_detect": "explode"}
    # Frames come in the order of their times: a packet whose turn passes was not decoded. Some containers
    # do not tell the times.
    times: list[int] = []
    timed = True
    for packet in container.demux(stream):
        if packet.size and not packet.is_discard:
            timed = timed and packet.pts is not None
            if timed:
                heapq.heappush(times, packet.pts)
        for frame in packet.decode():
            skipped = timed and not (times and frame.pts == heapq.heappop(times))
            if frame.is_corrupt or skipped:
                raise DataError("cannot be decoded: damaged frames")
            yield frame


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
    last, index = int(frames.max()), -1
    reformatter = VideoReformatter()
    with decoded_frames(path) as decoded:
        for index, frame in enumerate(decoded):
            wanted = frames == index
            if wanted.any():
                picture = np.rot90(reformatter.reformat(frame, **CONVERSION).to_ndarray(), rotation // 90)
                if picture.shape[:2] != size:
                    raise DataError(different_size(picture.shape[:2], size))
                crops[wanted] = picture[y : y + height, x : x + width]
            if index == last:
                return crops
    raise DataError(f"has {index + 1} frames, expected at least {last + 1}")
