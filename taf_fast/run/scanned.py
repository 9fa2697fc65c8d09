"""Scanning data sets before a run or a measure, for all ranks and the machines that they are on."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from taf_fast.data import DataError, Manifest, VideoDataset, read_manifest, scan
from taf_fast.data.clip import Clip, FrameFolder, FramePack
from taf_fast.data.decoding.decode import check_unchanged
from taf_fast.data.scanning.manifest import Entry, Key
from taf_fast.data.scanning.parallel import in_threads
from taf_fast.process import ranks
from taf_fast.process.progress import Progress

# Threads that look at files: a file system on a network answers many at once.
_WORKERS = 16


def scanned(dataset: VideoDataset, known: Mapping[Key, Entry], quick: bool) -> Manifest:
    """:func:`taf_fast.data.scan` of a split, which shows how far it is."""
    with Progress(f"scan {dataset.split}", len(dataset.samples)) as progress:
        return scan(dataset, progress=lambda done, _: progress.update(done), known=known, quick=quick)


def scanned_by_first(
    datasets: Sequence[VideoDataset], manifest: Path | None, quick: Sequence[bool]
) -> list[Manifest]:
    """What a scan of each split finds, which the first rank does for all.

    Every rank reads from a folder of its own, which may be the same as another's: its manifests have the
    paths of its ``datasets``.

    Args:
        datasets: the splits of one data set, as this rank's folder has them.
        manifest: see :func:`taf_fast.data.read_manifest`.
        quick: of each split, see :func:`taf_fast.data.scan`.

    Raises:
        DataError: on all ranks, if the folder of one has other classes, clips, labels or files than that of
            the first. Of a folder of pictures, only the first and the last are looked for.
    """

    def look() -> tuple[str, Path, list[Manifest]]:
        known = read_manifest(datasets[0].root, manifest)
        found = [scanned(dataset, known, fast) for dataset, fast in zip(datasets, quick, strict=True)]
        return ranks.host(), datasets[0].root, found

    host, root, manifests = ranks.from_first(look)
    same = (host, root) == (ranks.host(), datasets[0].root)
    there = f"{root} on {host}"
    with ranks.together():
        return [
            _here(of_first, dataset, there, look_at_files=not same and ranks.first_of_host())
            for of_first, dataset in zip(manifests, datasets, strict=True)
        ]


def _here(manifest: Manifest, dataset: VideoDataset, there: str, look_at_files: bool) -> Manifest:
    """The manifest of the first rank, which found it ``there``, with the paths of this one."""
    here = f"the {dataset.split} data in {dataset.root} on {ranks.host()} are not those in {there}"
    if manifest.classes != dataset.classes:
        raise DataError(f"{here}: other classes")
    if len(manifest.clips) != len(dataset.samples):
        raise DataError(f"{here}: {len(dataset.samples)} clips, expected {len(manifest.clips)}")
    clips = []
    for clip, sample in zip(manifest.clips, dataset.samples, strict=True):
        if (sample.id, sample.label) != (clip.id, clip.label):
            names = [f"{of.id} of class {dataset.classes[of.label]}" for of in (sample, clip)]
            raise DataError(f"{here}: clip {names[0]}, expected {names[1]}")
        if clip.source is not None and isinstance(sample, Clip) != isinstance(clip.source, FramePack):
            raise DataError(f"{here}: only one of both is a cache")
        if not isinstance(sample, Clip):
            clips.append(clip if clip.path == sample.path else dataclasses.replace(clip, path=sample.path))
        elif (sample.frames, sample.checksum) == (clip.frames, clip.checksum):
            clips.append(sample)  # of a cache, whose files may hold other clips together
        else:
            raise DataError(f"{here}: other pictures of clip {clip.id}")
    found = Manifest(manifest.classes, tuple(clips))
    if look_at_files:
        for clip, difference in zip(found.good, in_threads(_difference, found.good, _WORKERS), strict=True):
            if difference is not None:
                raise DataError(f"{here}: clip {clip.id}: {difference}")
    return found


def _difference(clip: Clip) -> str | None:
    try:
        if isinstance(clip.source, FrameFolder):
            for path in clip.files[:: max(1, clip.frames - 1)]:
                path.stat()
        elif not isinstance(clip.source, FramePack):  # whose length was looked at when it was read
            check_unchanged(clip)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    except DataError as error:
        return str(error)
    return None
