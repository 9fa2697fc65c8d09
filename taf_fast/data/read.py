"""Which of the known data sets a folder holds."""

import os
from pathlib import Path

from . import diving48, ssv1, ssv2
from .annotations import VideoDataset
from .errors import DataError


def read_dataset(root: str | os.PathLike, split: str) -> VideoDataset:
    """Reads the annotations of ``split`` ("train" or "validation") of the data set in ``root``.

    The files with its class names tell which one it is: Something-Something-V1 or -V2 or Diving48. DataError
    when there are none, or those of several; otherwise as the data set's own reader.
    """
    root = Path(root)
    signs = {
        ssv2.read_ssv2: ssv2.json_candidates(root, "labels"),
        ssv1.read_ssv1: [ssv1.labels_file(root)],
        diving48.read_diving48: [diving48.vocabulary_file(root)],
    }
    fitting = {}
    for read, files in signs.items():
        found = [file for file in files if file.is_file()]
        if found:
            fitting[read] = found[0]
    if not fitting:
        looked_for = ", ".join(str(file.relative_to(root)) for files in signs.values() for file in files)
        raise DataError(f"{root} holds no known data set, looked for {looked_for}")
    if len(fitting) > 1:
        raise DataError(f"expected one data set, found several: {', '.join(map(str, fitting.values()))}")
    return next(iter(fitting))(root, split)
