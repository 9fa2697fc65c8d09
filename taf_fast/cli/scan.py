"""`taf-fast scan`: decodes every clip of a data set once, to find the bad ones or to write a cache."""

import time
from collections import Counter, defaultdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from taf_fast.data import DataError, read_dataset, read_manifest
from taf_fast.data import scan as scan_split
from taf_fast.data.cache.read import INDEX, difference, is_cache, read_cache
from taf_fast.data.cache.write import write_cache
from taf_fast.data.clip import Clip, Sample, VideoDataset
from taf_fast.data.clip import printable as name_of
from taf_fast.data.formats.annotations import SPLITS
from taf_fast.data.scanning.manifest import Key, clip_of, key
from taf_fast.data.scanning.manifest_file import NAME, ManifestFile
from taf_fast.data.scanning.parallel import in_processes
from taf_fast.data.scanning.recording import differences, distinct, outdated, record
from taf_fast.plain import printable, say
from taf_fast.process.progress import Progress
from taf_fast.process.stopping import ended_by_ctrl_c

_DEFECTS_SHOWN, _SIZES_SHOWN, _CLASSES_SHOWN, _UNUSED_SHOWN = 20, 10, 20, 10


def scan(data: Path, manifest: Path | None, workers: int, quick: bool = False) -> None:
    """Bring the manifest of the data set in ``data`` up to date and print a summary of the data set.

    Clips that have not changed since an earlier scan are not scanned again, even if it was interrupted.

    Args:
        manifest: None for ``taf_fast_manifest.jsonl`` in ``data``.
        workers: the number of processes.
        quick: read containers only, as :func:`taf_fast.data.scan` does.

    Raises:
        DataError: annotations or a manifest that cannot be used, or no good clip.
    """
    datasets = _datasets(data)
    samples = distinct(datasets)
    with ManifestFile(manifest or data / NAME) as file:
        items = outdated(samples, file.entries, workers, quick)
        with Progress("scan", len(items)) as progress, ended_by_ctrl_c(progress):
            started, defects = time.monotonic(), 0
            for done, clip in enumerate(record(file, items, workers, quick), 1):
                defects += clip.defect is not None
                rate = done / (time.monotonic() - started)
                progress.update(done, f"{rate:.0f} clips/s, {defects} defects")
        file.finish(samples)
        clips = {name: clip_of(sample, file.entries[name].facts) for name, sample in samples.items()}
    known = len(clips) - len(items)
    say(f"{file.path}: {len(clips)} clips, {known} of them unchanged since an earlier scan")
    _print_splits(datasets, clips)
    _print_kinds(list(clips.values()))
    _print_certainty(list(clips.values()))
    _print_defects(list(clips.values()))
    _print_unused(data, datasets)
    if all(clip.defect is not None for clip in clips.values()):
        raise DataError(f"{data}: all {len(clips)} clips have defects")


def verify(data: Path, manifest: Path | None, workers: int) -> bool:
    """Read every clip again and print those that differ from the manifest; return whether there are none.

    The index of a cache is its manifest. DataError if the manifest does not have all clips.
    """
    if is_cache(data):
        clips = [clip for split in SPLITS for clip in read_cache(data, split).samples]
        total, path, found = len(clips), data / INDEX, in_processes(difference, clips, workers)
    else:
        samples = distinct(_datasets(data))
        total, path = len(samples), manifest or data / NAME
        entries = read_manifest(data, path)
        unknown = [sample.id for name, sample in samples.items() if name not in entries]
        if unknown:
            raise DataError(
                f"{path} lacks {len(unknown)} of {len(samples)} clips, the first is {unknown[0]}: "
                "run taf-fast scan to its end first"
            )
        found = differences(samples, entries, workers)
    different = 0
    with Progress("verify", total) as progress:
        for done, (sample, reason) in enumerate(found, 1):
            if reason is not None:
                different += 1
                progress.line(f"{sample.id}: {reason}")
            progress.update(done, f"{different} differ")
    say(f"{different} of {total} clips differ from {path}")
    return not different


def _datasets(data: Path) -> list[VideoDataset]:
    datasets = [read_dataset(data, split) for split in SPLITS]
    if any(isinstance(sample, Clip) for dataset in datasets for sample in dataset.samples):
        raise DataError(f"{data} is a cache, which needs no scan: scan the data that it was made from")
    return datasets


def _print_splits(datasets: list[VideoDataset], clips: dict[Key, Clip]) -> None:
    """Good clips by split and class, and the classes that have none in a split."""
    counts = []
    for dataset in datasets:
        found = (clips[key(sample, dataset.root)] for sample in dataset.samples if isinstance(sample, Sample))
        good = [
            sample.label for sample, clip in zip(dataset.samples, found, strict=True) if clip.defect is None
        ]
        counts.append(Counter(good))
        say(f"{dataset.split}: {len(good)} good clips of {len(dataset.samples)}")
    classes = datasets[0].classes
    table = Table(box=box.MARKDOWN)
    table.add_column("class", overflow="fold")
    for dataset in datasets:
        table.add_column(dataset.split, justify="right", no_wrap=True)
    order = sorted(range(len(classes)), key=lambda label: min(count[label] for count in counts))
    for label in order[:_CLASSES_SHOWN]:
        table.add_row(Text(printable(classes[label])), *(f"{count[label]:,}" for count in counts))
    others = order[_CLASSES_SHOWN:]
    if others:
        ranges = [
            f"{min(count[label] for label in others):,} to {max(count[label] for label in others):,}"
            for count in counts
        ]
        table.add_row(f"{len(others)} others, each", *ranges)
    Console(width=100).print(table)
    for dataset, count in zip(datasets, counts, strict=True):
        missing = [name for label, name in enumerate(classes) if not count[label]]
        if missing:
            say(f"{len(missing)} of {len(classes)} classes have no good clip in {dataset.split}:")
            _print_some([f"  {name}" for name in missing], _CLASSES_SHOWN)


def _print_kinds(clips: list[Clip]) -> None:
    good = [clip for clip in clips if clip.defect is None]
    kinds: dict[tuple[str, str], list[Clip]] = defaultdict(list)
    for clip in good:
        kinds[clip.codec, str(clip.size)].append(clip)
    kinds = dict(sorted(kinds.items(), key=lambda kind: -len(kind[1])))
    table = Table(box=box.MARKDOWN)
    for column in ("codec", "pixels"):
        table.add_column(column, no_wrap=True)
    for column in ("clips", "frames", "MB"):
        table.add_column(column, justify="right", no_wrap=True)
    for (codec, size), some in list(kinds.items())[:_SIZES_SHOWN]:
        _add_row(table, codec, size, some)
    others = [clip for some in list(kinds.values())[_SIZES_SHOWN:] for clip in some]
    if others:
        _add_row(table, "", f"{len(kinds) - _SIZES_SHOWN} others", others)
    if good:
        _add_row(table, "all", "", good)
        Console(width=100).print(table)


def _print_certainty(clips: list[Clip]) -> None:
    good = [clip for clip in clips if clip.defect is None]
    decoded = sum(clip.decoded for clip in good)
    if decoded == len(good):
        say(f"all frames of the {decoded} good clips were decoded")
    else:
        say(
            f"{decoded} of {len(good)} good clips were decoded; of the others only the containers were read: "
            "some may turn out bad when they are used (a scan without --quick decodes them)"
        )


def _print_defects(clips: list[Clip]) -> None:
    bad = [clip for clip in clips if clip.defect is not None]
    say(f"{len(bad)} of {len(clips)} clips have defects")
    _print_some([f"  {clip.id}: {clip.defect}" for clip in bad], _DEFECTS_SHOWN, ", which the manifest has")


def _print_unused(data: Path, datasets: list[VideoDataset]) -> None:
    unused = sorted({path for dataset in datasets for path in dataset.unused})
    if unused:
        say(f"{len(unused)} files and folders are no clips and are not used:")
        _print_some([f"  {name_of(str(path.relative_to(data)))}" for path in unused], _UNUSED_SHOWN)


def _print_some(lines: list[str], most: int, where: str = "") -> None:
    for line in lines[:most]:
        say(line)
    if len(lines) > most:
        say(f"  and {len(lines) - most} more{where}")


def _add_row(table: Table, codec: str, size: str, clips: list[Clip]) -> None:
    frames, megabytes = sum(clip.frames for clip in clips), sum(clip.bytes for clip in clips) / 1e6
    table.add_row(codec, size, f"{len(clips):,}", f"{frames:,}", f"{megabytes:,.1f}")


def cache(data: Path, manifest: Path | None, folder: Path, workers: int) -> None:
    """Write the cache of the data set in ``data`` into ``folder``, in ``workers`` processes, or continue it.

    ``manifest`` is as for :func:`taf_fast.cli.scan.scan`, which has to run first. DataError if ``folder``
    holds something else, or if no clip can be decoded.
    """
    known = read_manifest(data, manifest)
    datasets = [read_dataset(data, split) for split in SPLITS]
    splits = [(dataset, scan_split(dataset, known=known, quick=True).clips) for dataset in datasets]
    total = sum(len(clips) for _, clips in splits)
    with Progress("cache", total) as progress, ended_by_ctrl_c(progress):
        for done, clip in enumerate(write_cache(folder, splits, workers), 1):
            progress.update(done, clip.id)
    clips = [clip for split in SPLITS for clip in read_cache(folder, split).samples]
    good = [clip for clip in clips if isinstance(clip, Clip) and clip.defect is None]
    megabytes = sum(clip.bytes for clip in good) / 1e6
    say(f"{folder}: {len(good)} of {total} clips, {megabytes:,.1f} MB")
    if not good:
        raise DataError(f"{data}: none of {total} clips can be decoded")
