"""Filling a manifest file, and comparing it with its clips."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping

from taf_fast.data.clip import Clip, Sample, VideoDataset
from taf_fast.data.scanning.checksum import checksum
from taf_fast.data.scanning.manifest import Entry, Key, clip_of, key, look, mark
from taf_fast.data.scanning.manifest_file import ManifestFile
from taf_fast.data.scanning.parallel import in_processes, in_threads
from taf_fast.data.scanning.probe import Facts


def distinct(datasets: Iterable[VideoDataset]) -> dict[Key, Sample]:
    """The samples of all splits by the keys of their entries; Clips need no scan and are left out."""
    return {
        key(sample, dataset.root): sample
        for dataset in datasets
        for sample in dataset.samples
        if isinstance(sample, Sample)
    }


def outdated(
    samples: Mapping[Key, Sample], entries: Mapping[Key, Entry], workers: int, quick: bool = False
) -> list[tuple[Key, Sample]]:
    """The ``samples`` without an entry that still holds for a scan that is ``quick`` or not."""

    def holds(item: tuple[Key, Sample]) -> bool:
        name, sample = item
        return name in entries and entries[name].holds(sample.path, quick)

    items = list(samples.items())
    held = in_threads(holds, items, workers)
    return [item for item, still in zip(items, held, strict=True) if not still]


def record(
    manifest: ManifestFile, items: list[tuple[Key, Sample]], workers: int, quick: bool = False
) -> Iterator[Clip]:
    """Scans all ``items`` in ``workers`` processes, reading every byte; yields the clips as they get done.

    ``quick`` is as for :func:`taf_fast.data.scan`.

    A clip is in the file when it is yielded.
    """
    for (name, sample), entry in in_processes(_look_quickly if quick else _look, items, workers):
        entry = entry or _crashed(sample)
        manifest.append(name, entry)
        yield clip_of(sample, entry.facts)


def differences(
    samples: Mapping[Key, Sample], entries: Mapping[Key, Entry], workers: int
) -> Iterator[tuple[Sample, str | None]]:
    """Reads all ``samples``, which must have entries, and yields how each differs from its entry, or None.

    A clip that was missing or unreadable when its entry was made, and still is, does not differ.
    """
    items = [(sample, entries[name]) for name, sample in samples.items()]
    for (sample, _), found in in_processes(_difference, items, workers):
        yield sample, found


def _look(item: tuple[Key, Sample]) -> Entry:
    return look(item[1], with_checksum=True)


def _look_quickly(item: tuple[Key, Sample]) -> Entry:
    return look(item[1], quick=True, with_checksum=True)


def _crashed(sample: Sample) -> Entry:
    facts = Facts(defect="crashes the process that scans it")
    entry = Entry(mark(sample.path), facts)
    # With a checksum the entry holds, and no later scan runs into the crash again.
    with contextlib.suppress(OSError):
        facts.checksum = checksum(clip_of(sample, facts).files)
    return entry


def _difference(item: tuple[Sample, Entry]) -> str | None:
    sample, entry = item
    now, expected = mark(sample.path), entry.facts.checksum
    if now != entry.mark:
        return "missing file" if now is None else "changed since the scan"
    if expected is None:
        return None
    try:
        found = checksum(clip_of(sample, entry.facts).files)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    if found == expected:
        return None
    crcs = f"CRC-32 {found:08x}, expected {expected:08x}"
    return f"has other bytes than at the scan, though the same size and time: {crcs}"
