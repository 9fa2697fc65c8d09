"""Filling a manifest file, and comparing one with the clips it is of."""

from collections.abc import Iterable, Iterator, Mapping

from taf_fast.data.formats.annotations import Sample, VideoDataset

from .checksum import checksum
from .manifest import Clip, Entry, Key, clip_of, key, look, mark
from .manifest_file import ManifestFile
from .parallel import in_processes, in_threads


def distinct(datasets: Iterable[VideoDataset]) -> dict[Key, Sample]:
    """The samples of all splits by what their entries are found by."""
    return {key(sample, dataset.root): sample for dataset in datasets for sample in dataset.samples}


def outdated(
    samples: Mapping[Key, Sample], entries: Mapping[Key, Entry], workers: int
) -> list[tuple[Key, Sample]]:
    """Those of ``samples`` without an entry that still holds."""

    def holds(item: tuple[Key, Sample]) -> bool:
        name, sample = item
        return name in entries and entries[name].holds(sample.path)

    items = list(samples.items())
    held = in_threads(holds, items, workers)
    return [item for item, still in zip(items, held, strict=True) if not still]


def record(manifest: ManifestFile, items: list[tuple[Key, Sample]], workers: int) -> Iterator[Clip]:
    """Looks at all ``items`` in ``workers`` processes, reading every byte; gives the clips that are done.

    A clip that is given is in the file.
    """
    for (name, sample), entry in in_processes(_look, items, workers):
        entry = entry or _crashed(sample)
        manifest.append(name, entry)
        yield clip_of(sample, entry.facts)


def differences(
    samples: Mapping[Key, Sample], entries: Mapping[Key, Entry], workers: int
) -> Iterator[tuple[Sample, str | None]]:
    """Reads all ``samples``, which must have entries; what each is found to differ in, None for nothing.

    A clip that was missing or could not be read when its entry was made, and still is, does not differ.
    """
    items = [(sample, entries[name]) for name, sample in samples.items()]
    for (sample, _), found in in_processes(_difference, items, workers):
        yield sample, found


def _look(item: tuple[Key, Sample]) -> Entry:
    return look(item[1], with_checksum=True)


def _crashed(sample: Sample) -> Entry:
    entry = Entry(mark(sample.path), {"defect": "crashes the process that looks at it"})
    try:
        # So that the entry holds: nobody should run into this again.
        return Entry(entry.mark, {**entry.facts, "checksum": checksum(clip_of(sample, entry.facts).files)})
    except OSError:
        return entry


def _difference(item: tuple[Sample, Entry]) -> str | None:
    sample, entry = item
    now, expected = mark(sample.path), entry.facts.get("checksum")
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
