"""One look at every clip of a data set: lengths, sizes, codecs and defects."""

import stat
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from taf_fast.data.errors import DataError
from taf_fast.data.formats.annotations import Sample, VideoDataset

from .checksum import checksum
from .parallel import in_threads
from .probe import probe

MIN_FRAMES = 3


@dataclass(frozen=True)
class Clip:
    """A video file or a folder of JPEG frames, and why it cannot be used.

    Number of frames; frame size in pixels as shown, that is after turning by ``rotation`` (0, 90, 180 or 270
    degrees counter-clockwise); codec by FFmpeg's name, "jpeg" for a folder; size of the file, or of the
    folder's frames together, in bytes. ``frame_name`` and ``first_frame`` say how a folder's are called.
    ``keyframes`` are the frames, from 0 in the order they are shown in, that a decoder can start at; None for
    a folder, and where the container does not tell when frames are shown. ``checksum`` is the CRC-32 of the
    file, or of the folder's frames one after the other; None where it was not computed. ``offsets`` are, for
    frames packed in one file, their places in it in bytes and the end of the last.
    """

    id: str
    path: Path
    label: int
    frames: int = 0
    width: int = 0
    height: int = 0
    rotation: int = 0
    codec: str = ""
    bytes: int = 0
    frame_name: str = ""
    first_frame: int = 1
    keyframes: tuple[int, ...] | None = None
    checksum: int | None = None
    offsets: array | None = None
    defect: str | None = None

    @property
    def files(self) -> list[Path]:
        """The video file, or the folder's frames in their order."""
        return list(map(self.frame_file, range(self.frames))) if self.frame_name else [self.path]

    def frame_file(self, index: int) -> Path:
        """That of a frame of a folder, from 0."""
        return self.path / self.frame_name.format(self.first_frame + index)


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


@dataclass(frozen=True)
class Entry:
    """What a look at a clip's files told, and of which state of them.

    ``mark`` is the size in bytes (0 for a folder) and the time of the last change in nanoseconds; None when
    there was nothing. ``facts`` are fields of a Clip.
    """

    mark: tuple[int, int] | None
    facts: Mapping[str, object]

    def holds(self, path: Path) -> bool:
        """Whether ``path`` is unchanged. What could not be read has no checksum: it may be readable now."""
        return self.facts.get("checksum") is not None and self.mark == mark(path)


Key = tuple[str, tuple[int, int] | None]
FACTS = tuple(field.name for field in fields(Clip) if field.name not in ("id", "path", "label", "offsets"))


def clip_of(sample: Sample, facts: Mapping[str, object]) -> Clip:
    """The clip of a sample and its entry's facts."""
    return Clip(sample.id, sample.path, sample.label, **facts)


def key(sample: Sample, root: Path) -> Key:
    """What a sample's entry is found by: its path in the data set and the frames that are to be used."""
    path = sample.path
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix(), sample.frames


def mark(path: Path) -> tuple[int, int] | None:
    """That of an entry made now."""
    try:
        found = path.stat()
    except OSError:
        return None
    return 0 if stat.S_ISDIR(found.st_mode) else found.st_size, found.st_mtime_ns


def scan(
    dataset: VideoDataset,
    workers: int = 4,
    progress: Callable[[int, int], None] | None = None,
    known: Mapping[Key, Entry] | None = None,
) -> Manifest:
    """Demuxes every video and lists every folder of frames (a few milliseconds each, in ``workers`` threads).

    Nothing is decoded but the first frame of a video that can be rotated. Clips that are missing, damaged, of
    a codec that cannot be decoded, of more than 16384 pixels a side, or shorter than 3 frames, which the
    official code leaves out too, carry a defect.
    ``progress(done, total)`` is called after every clip. ``known`` are the entries of a manifest file
    (:func:`taf_fast.data.read_manifest`): where one still holds, the clip is not looked at again.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    known = known or {}

    def clip(sample: Sample | Clip) -> Clip:
        if isinstance(sample, Clip):
            return sample
        entry = known.get(key(sample, dataset.root))
        if entry is None or not entry.holds(sample.path):
            entry = look(sample)
        return clip_of(sample, entry.facts)

    clips = []
    for scanned in in_threads(clip, dataset.samples, workers):
        clips.append(scanned)
        if progress:
            progress(len(clips), len(dataset.samples))
    return Manifest(dataset.classes, tuple(clips))


def look(sample: Sample, with_checksum: bool = False) -> Entry:
    """A new entry; for the checksum every byte is read."""
    # Taken first: what changes during the look is looked at again.
    before, facts = mark(sample.path), {}
    try:
        try:
            probe(sample.path, facts, sample.frames)
            if facts["frames"] < MIN_FRAMES:
                raise DataError(f"has {facts['frames']} frames, expected at least {MIN_FRAMES}")
        except DataError as error:
            facts["defect"] = str(error)
        if with_checksum and before is not None:
            facts["checksum"] = checksum(clip_of(sample, facts).files)
    except OSError as error:
        facts.setdefault("defect", f"cannot be read: {error.strerror or error}")
    return Entry(before, facts)
