"""One look at every file of a data set: lengths, sizes, codecs and defects, without decoding."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import av

from .errors import DataError
from .ssv2 import Sample, VideoDataset

# What DALI decodes without a GPU.
CODECS = ("vp8", "vp9", "mjpeg")


@dataclass(frozen=True)
class Clip:
    """A video file: number of frames, frame size in pixels, codec, file size, and why it cannot be used."""

    id: str
    path: Path
    label: int
    frames: int = 0
    width: int = 0
    height: int = 0
    codec: str = ""
    bytes: int = 0
    defect: str | None = None


@dataclass(frozen=True)
class Manifest:
    """Every clip of a data set, in its order, and the class names by index."""

    classes: tuple[str, ...]
    clips: tuple[Clip, ...]

    @property
    def good(self) -> tuple[Clip, ...]:
        """Clips without a known defect."""
        return tuple(clip for clip in self.clips if clip.defect is None)

    @property
    def defects(self) -> dict[str, str]:
        """Reason by clip id."""
        return {clip.id: clip.defect for clip in self.clips if clip.defect is not None}


def scan(
    dataset: VideoDataset,
    num_segments: int,
    workers: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Demuxes every clip (a few milliseconds each, in ``workers`` threads); nothing is decoded.

    Clips that are missing, damaged, of a codec DALI cannot decode on the CPU, or shorter than
    ``num_segments`` frames carry a defect. ``progress(done, total)`` is called after every clip.
    """
    if num_segments < 1 or workers < 1:
        raise ValueError(f"num_segments and workers must be at least 1, got {num_segments} and {workers}")
    clips = []
    with ThreadPoolExecutor(workers) as pool:
        for clip in pool.map(lambda sample: _scan_clip(sample, num_segments), dataset.samples):
            clips.append(clip)
            if progress:
                progress(len(clips), len(dataset.samples))
    return Manifest(dataset.classes, tuple(clips))


def _scan_clip(sample: Sample, num_segments: int) -> Clip:
    facts: dict = {}
    try:
        _probe(sample.path, num_segments, facts)
    except DataError as error:
        facts["defect"] = str(error)
    return Clip(sample.id, sample.path, sample.label, **facts)


def _probe(path: Path, num_segments: int, facts: dict) -> None:
    """Fills in the fields of a Clip; raises DataError at the first defect, keeping what is known by then."""
    if not path.is_file():
        raise DataError("missing file")
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
            facts["frames"] = len(packets)
            announced = stream.frames
            last = float(max((packet.pts or 0) * packet.time_base for packet in packets)) if packets else 0
            duration = (container.duration or 0) / av.time_base if len(container.streams) == 1 else 0
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"cannot be opened: {error.strerror or error}") from error
    if not facts["frames"]:
        raise DataError("no frames")
    if codec not in CODECS:
        raise DataError(f"codec {codec} is not decodable on the CPU (only {', '.join(CODECS)})")
    with path.open("rb") as file:
        size = matroska_size(file.read(4096))
    if size and facts["bytes"] < size:
        raise DataError(f"truncated: {facts['bytes']} of {size} bytes")
    if facts["frames"] < announced:
        raise DataError(f"truncated: {facts['frames']} of {announced} frames")
    # WebM announces a duration instead of a number of frames; the tenth allows for uneven frames.
    if not announced and last * (1 + 1 / facts["frames"]) < 0.9 * duration:
        raise DataError(f"breaks off after {last:.1f} of {duration:.1f} seconds")
    if facts["frames"] < num_segments:
        raise DataError(f"has {facts['frames']} frames, expected at least {num_segments}")


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
