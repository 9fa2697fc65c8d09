"""The clips of a data set: as annotated, and as a scan found them."""

import os
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Size(NamedTuple):
    """Height and width of a frame in pixels, in the order of an array's axes."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.width} x {self.height}"


class Box(NamedTuple):
    """Part of a frame in pixels: its top left corner and its size, in the order of an array's axes."""

    y: int
    x: int
    height: int
    width: int


@dataclass(frozen=True)
class Sample:
    """One annotated clip: a video file or a folder of frames.

    ``label`` is an index into the data set's classes. ``frames`` are the numbers of the first and the last
    frame in the folder, if the annotations give them; None means all frames.
    """

    id: str
    path: Path
    label: int
    frames: tuple[int, int] | None = None


@dataclass(frozen=True)
class VideoFile:
    """A clip stored as a video.

    ``codec`` and ``pixels`` are FFmpeg's names of the codec and the pixel format; ``rotation`` is the degrees
    (0, 90, 180 or 270, counter-clockwise) by which players turn the frames. ``regular`` says that decoding
    the whole file has shown it to be as simple as files can be: one video stream, in which every packet is
    one frame, frames are shown in the order of their times, which all differ, and all have one size and pixel
    format. ``late`` says that the stream begins in the middle of another: its first packets need frames that
    are missing, and decoders show nothing of them.
    """

    codec: str
    pixels: str = ""
    rotation: int = 0
    regular: bool = False
    late: bool = False


@dataclass(frozen=True)
class FrameFolder:
    """A clip stored as a folder of JPEG files: the template of their names and the number of the first."""

    template: str
    first: int
    codec = "jpeg"

    def name(self, index: int) -> str:
        """The file name of frame ``index``, counted from 0."""
        return self.template.format(self.first + index)


@dataclass(frozen=True)
class FramePack:
    """A clip stored as JPEG pictures in a large file: the byte where each begins, and where the last ends."""

    offsets: "array[int]"
    codec = "jpeg"


Source = VideoFile | FrameFolder | FramePack


@dataclass(frozen=True)
class Clip:
    """A scanned clip: what is known of it, and why it cannot be used (``defect``).

    ``source`` says how the clip is stored at ``path``; it is None if the scan did not get that far. ``size``
    is that of the frames as shown, after turning. ``decoded`` says that all frames have been decoded, and
    not only counted. ``bytes`` is the length of the file, or of all pictures
    together. ``checksum`` is the CRC-32 of these bytes in order; None if it was not computed. ``left_out``
    says that a cache was made without the clip, whose defect was accepted then and does not count again.
    """

    id: str
    path: Path
    label: int
    source: Source | None = None
    frames: int = 0
    size: Size = Size(0, 0)
    bytes: int = 0
    decoded: bool = False
    checksum: int | None = None
    defect: str | None = None
    left_out: bool = False

    @property
    def codec(self) -> str:
        """FFmpeg's name of the codec; "jpeg" for pictures, "" if unknown."""
        return self.source.codec if self.source else ""

    @property
    def files(self) -> list[Path]:
        """The video file, the pack, or the folder's frames in order."""
        if isinstance(self.source, FrameFolder):
            return [self.path / self.source.name(index) for index in range(self.frames)]
        return [self.path]


@dataclass(frozen=True)
class VideoDataset:
    """The clips of one split in the order of its annotation file; class names by index.

    ``samples`` are Clips if the data set is a cache, whose index knows everything that a scan finds out.
    ``name`` is the data set: "ssv1", "ssv2" or "diving48"; "list" for another one described by lists, or
    "folders" for a tree of folders. ``unused`` are files and folders that lie among the clips but are none.
    """

    root: Path
    split: str
    classes: tuple[str, ...]
    samples: tuple[Sample | Clip, ...]
    name: str
    unused: tuple[Path, ...] = ()


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


# Clips with fewer frames are left out, as in the official code.
MIN_FRAMES = 3


def printable(name: str) -> str:
    """A file name as text that can be printed and saved: bytes that are not UTF-8 become \\xff and so on."""
    return os.fsencode(name).decode(errors="backslashreplace")


def too_short(frames: int) -> str:
    """The defect of a clip of fewer than MIN_FRAMES frames."""
    return f"has {frames} frames, expected at least {MIN_FRAMES}"


def different_size(found: Size, expected: Size) -> str:
    """The defect of frames whose size is not the one the scan found."""
    return f"has frames of {found} pixels, expected {expected}"
