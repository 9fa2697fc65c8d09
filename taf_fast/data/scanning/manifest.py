"""Scanning every clip of a data set: lengths, sizes, codecs and defects."""

import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from taf_fast.data.clip import MIN_FRAMES, Clip, Manifest, Sample, VideoDataset, too_short
from taf_fast.data.scanning.checksum import checksum
from taf_fast.data.scanning.parallel import in_threads
from taf_fast.data.scanning.probe import Facts, probe
from taf_fast.errors import DataError


@dataclass(frozen=True)
class Entry:
    """The result of scanning a clip's files, and the state of the files it is valid for.

    ``mark`` is the size in bytes (0 for a folder) and the time of the last change in nanoseconds; None if
    there was nothing at the path.
    """

    mark: tuple[int, int] | None
    facts: Facts

    def holds(self, path: Path, quick: bool = False) -> bool:
        """Whether ``path`` is unchanged, and the entry of a scan as thorough as one that is ``quick`` or not.

        A clip that could not be read has no checksum and never holds: it may be readable now.
        """
        thorough = quick or self.facts.decoded or self.facts.defect is not None
        return thorough and self.facts.checksum is not None and self.mark == mark(path)


Key = tuple[str, tuple[int, int] | None]


def clip_of(sample: Sample, facts: Facts) -> Clip:
    """The clip of a sample for which a scan found ``facts``."""
    return Clip(sample.id, sample.path, sample.label, **vars(facts))


def key(sample: Sample, root: Path) -> Key:
    """The key of a sample's entry: its path in the data set and the frames to use."""
    path = sample.path
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix(), sample.frames


def mark(path: Path) -> tuple[int, int] | None:
    """The mark of an entry made now."""
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
    quick: bool = False,
) -> Manifest:
    """Decodes every clip in ``workers`` threads, to count its frames and to find those that are damaged.

    ``quick`` reads only the containers of videos and their first frames, a few milliseconds each, and the
    names and the first picture of folders. It decodes the rest of a video only if the container leaves doubt
    about the number of frames, and leaves damage to be found when the clip is used.

    A clip gets a defect if it is missing, damaged, of a codec
    that cannot be decoded, larger than 16384 pixels a side, or shorter than 3 frames, which the official code
    leaves out too.

    ``progress(done, total)`` is called after every clip. ``known`` are the entries of a manifest file
    (:func:`taf_fast.data.read_manifest`); clips whose entry still holds are not scanned again. ValueError
    unless ``workers`` is at least 1.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    entries = known or {}

    def clip(sample: Sample | Clip) -> Clip:
        if isinstance(sample, Clip):
            return sample
        entry = entries.get(key(sample, dataset.root))
        if entry is None or not entry.holds(sample.path, quick):
            entry = look(sample, quick)
        return clip_of(sample, entry.facts)

    clips: list[Clip] = []
    for scanned in in_threads(clip, dataset.samples, workers):
        clips.append(scanned)
        if progress:
            progress(len(clips), len(dataset.samples))
    return Manifest(dataset.classes, tuple(clips))


def look(sample: Sample, quick: bool = False, with_checksum: bool = False) -> Entry:
    """Scans a sample's files; the checksum needs every byte to be read."""
    # The mark comes first: a file that changes during the scan is then scanned again.
    before, facts = mark(sample.path), Facts()
    try:
        try:
            probe(sample.path, facts, sample.frames, quick)
            if facts.frames < MIN_FRAMES:
                raise DataError(too_short(facts.frames))
        except DataError as error:
            facts.defect = str(error)
        if with_checksum and before is not None:
            facts.checksum = checksum(clip_of(sample, facts).files)
    except OSError as error:
        facts.defect = facts.defect or f"cannot be read: {error.strerror or error}"
    return Entry(before, facts)
