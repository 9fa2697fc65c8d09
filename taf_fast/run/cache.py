"""`taf-fast scan --cache`: decodes a data set once, into a folder that is a data set itself."""

from pathlib import Path

from taf_fast.data import DataError, read_dataset, read_manifest, scan
from taf_fast.data.cache import read_cache
from taf_fast.data.caching import write_cache
from taf_fast.data.formats.annotations import SPLITS
from taf_fast.run.progress import Progress
from taf_fast.run.stopping import ended_by_ctrl_c


def cache(data: Path, manifest: Path | None, folder: Path, workers: int) -> None:
    """Write the cache of the data set in ``data`` into ``folder``, in ``workers`` processes, or go on.

    ``manifest`` is as for :func:`taf_fast.run.scan.scan`, which comes before. DataError when ``folder`` holds
    something else, or when no clip can be decoded.
    """
    known = read_manifest(data, manifest)
    datasets = [read_dataset(data, split) for split in SPLITS]
    splits = [(dataset, scan(dataset, known=known).clips) for dataset in datasets]
    total = sum(len(clips) for _, clips in splits)
    with Progress("cache", total) as progress, ended_by_ctrl_c(progress):
        for done, clip in enumerate(write_cache(folder, splits, workers), 1):
            progress.update(done, clip.id)
    clips = [clip for split in SPLITS for clip in read_cache(folder, split).samples]
    good = [clip for clip in clips if clip.defect is None]
    print(f"{folder}: {len(good)} of {total} clips, {sum(clip.bytes for clip in good) / 1e6:,.1f} MB")
    if not good:
        raise DataError(f"{data}: none of {total} clips can be decoded")
