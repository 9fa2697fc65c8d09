"""One look at every clip of a data set: lengths, sizes, codecs and defects."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .annotations import Sample, VideoDataset
from .errors import DataError
from .probe import probe

MIN_FRAMES = 3


@dataclass(frozen=True)
class Clip:
    """A video file or a folder of JPEG frames, and why it cannot be used.

    Number of frames; frame size in pixels as shown, that is after turning by ``rotation`` (0, 90, 180 or 270
    degrees counter-clockwise); codec by FFmpeg's name, "jpeg" for a folder; size of the file, or of the
    folder's frames together, in bytes. Frame i of a folder is ``frame_name.format(first_frame + i)``.
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
    workers: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Demuxes every video and lists every folder of frames (a few milliseconds each, in ``workers`` threads).

    Nothing is decoded but the first frame of a video that can be rotated. Clips that are missing, damaged, of
    a codec that cannot be decoded, or shorter than 3 frames, which the official code leaves out too, carry a
    defect.
    ``progress(done, total)`` is called after every clip.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    clips = []
    with ThreadPoolExecutor(workers) as pool:
        for clip in pool.map(_scan_clip, dataset.samples):
            clips.append(clip)
            if progress:
                progress(len(clips), len(dataset.samples))
    return Manifest(dataset.classes, tuple(clips))


def _scan_clip(sample: Sample) -> Clip:
    facts: dict = {}
    try:
        probe(sample.path, facts)
        if facts["frames"] < MIN_FRAMES:
            raise DataError(f"has {facts['frames']} frames, expected at least {MIN_FRAMES}")
    except DataError as error:
        facts["defect"] = str(error)
    return Clip(sample.id, sample.path, sample.label, **facts)
