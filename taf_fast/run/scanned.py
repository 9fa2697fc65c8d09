"""Scanning a split before a run or a measure, with its progress."""

from collections.abc import Mapping

from taf_fast.data import Manifest, VideoDataset, scan
from taf_fast.data.scanning.manifest import Entry, Key
from taf_fast.process.progress import Progress


def scanned(dataset: VideoDataset, known: Mapping[Key, Entry], quick: bool) -> Manifest:
    """:func:`taf_fast.data.scan` of a split, which shows how far it is."""
    with Progress(f"scan {dataset.split}", len(dataset.samples)) as progress:
        return scan(dataset, progress=lambda done, _: progress.update(done), known=known, quick=quick)
