"""`taf-fast scan`: looks at every clip of a data set once and keeps what it saw in a manifest file."""

import time
from collections import defaultdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from taf_fast.data import DataError, read_dataset, read_manifest
from taf_fast.data.cache import INDEX, difference, is_cache, read_cache
from taf_fast.data.formats.annotations import SPLITS, Sample
from taf_fast.data.scanning.manifest import Clip, Key, clip_of
from taf_fast.data.scanning.manifest_file import NAME, ManifestFile
from taf_fast.data.scanning.parallel import in_processes
from taf_fast.data.scanning.recording import differences, distinct, outdated, record
from taf_fast.run.progress import Progress
from taf_fast.run.stopping import ended_by_ctrl_c

_DEFECTS_SHOWN, _SIZES_SHOWN = 20, 10


def scan(data: Path, manifest: Path | None, workers: int) -> None:
    """Bring the manifest of the data set in ``data`` up to date and print what is in it.

    Clips that have not changed since they were scanned are not looked at again, whether that scan came to its
    end or not.

    Args:
        manifest: None for ``taf_fast_manifest.jsonl`` in ``data``.
        workers: processes.

    Raises:
        DataError: annotations or a manifest that cannot be used, or no good clip.
    """
    samples = _samples(data)
    with ManifestFile(manifest or data / NAME) as file:
        items = outdated(samples, file.entries, workers)
        with Progress("scan", len(items)) as progress, ended_by_ctrl_c(progress):
            started, defects = time.monotonic(), 0
            for done, clip in enumerate(record(file, items, workers), 1):
                defects += clip.defect is not None
                rate = done / (time.monotonic() - started)
                progress.update(done, f"{rate:.0f} clips/s, {defects} defects")
        file.finish(samples)
        clips = [clip_of(sample, file.entries[name].facts) for name, sample in samples.items()]
    known = len(clips) - len(items)
    print(f"{file.path}: {len(clips)} clips, {known} of them unchanged since an earlier scan")
    _print_summary(clips)
    if all(clip.defect is not None for clip in clips):
        raise DataError(f"{data}: all {len(clips)} clips have defects")


def verify(data: Path, manifest: Path | None, workers: int) -> bool:
    """Read every clip again and print those that are not as the manifest says; whether there are none.

    The index of a cache is its manifest. DataError without a manifest of all clips.
    """
    if is_cache(data):
        samples = [clip for split in SPLITS for clip in read_cache(data, split).samples]
        path, found = data / INDEX, in_processes(difference, samples, workers)
    else:
        samples = _samples(data)
        path = manifest or data / NAME
        entries = read_manifest(data, path)
        unknown = [sample.id for name, sample in samples.items() if name not in entries]
        if unknown:
            raise DataError(
                f"{path} lacks {len(unknown)} of {len(samples)} clips, the first is {unknown[0]}: "
                "run taf-fast scan to its end first"
            )
        found = differences(samples, entries, workers)
    different = 0
    with Progress("verify", len(samples)) as progress:
        for done, (sample, reason) in enumerate(found, 1):
            if reason is not None:
                different += 1
                progress.line(f"{sample.id}: {reason}")
            progress.update(done, f"{different} differ")
    print(f"{different} of {len(samples)} clips differ from {path}")
    return not different


def _samples(data: Path) -> dict[Key, Sample]:
    datasets = [read_dataset(data, split) for split in SPLITS]
    if any(isinstance(sample, Clip) for dataset in datasets for sample in dataset.samples):
        raise DataError(f"{data} is a cache, of which all is known: scan the data that it was made from")
    return distinct(datasets)


def _print_summary(clips: list[Clip]) -> None:
    good = [clip for clip in clips if clip.defect is None]
    bad = [clip for clip in clips if clip.defect is not None]
    kinds: dict[tuple[str, str], list[Clip]] = defaultdict(list)
    for clip in good:
        kinds[clip.codec, f"{clip.width} x {clip.height}"].append(clip)
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
    print(f"{len(bad)} of {len(clips)} clips have defects")
    for clip in bad[:_DEFECTS_SHOWN]:
        print(f"  {clip.id}: {clip.defect}")
    if len(bad) > _DEFECTS_SHOWN:
        print(f"  and {len(bad) - _DEFECTS_SHOWN} more, which the manifest has")


def _add_row(table: Table, codec: str, size: str, clips: list[Clip]) -> None:
    frames, megabytes = sum(clip.frames for clip in clips), sum(clip.bytes for clip in clips) / 1e6
    table.add_row(codec, size, f"{len(clips):,}", f"{frames:,}", f"{megabytes:,.1f}")
