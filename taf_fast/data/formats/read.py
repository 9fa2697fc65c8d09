"""Which data set a folder holds."""

import os
from pathlib import Path

from taf_fast.data.cache import is_cache, read_cache
from taf_fast.data.errors import DataError

from .annotations import VideoDataset
from .lists import FORMATS, find_lists, read_lists
from .official import OFFICIAL, find_official
from .tree import is_tree, read_tree


def read_dataset(root: str | os.PathLike, split: str) -> VideoDataset:
    """Reads the annotations of ``split`` ("train" or "validation") of the data set in ``root``.

    It is read by the first of these of which it has the files:

    - ``read_cache``: what taf-fast scan --cache wrote.
    - ``read_lists``: lists of clips, as the official code of the models has them. They come before the files
      they were made from, which often lie beside them: only they know where frames were extracted to.
    - ``read_ssv1``, ``read_ssv2`` or ``read_diving48``: a file with the data set's class names.
    - ``read_tree``: folders for training and validation with a folder for every class.

    DataError when there is none of them, or when there are lists, or files of class names, of several data
    sets; otherwise as the data set's own reader.
    """
    root = Path(root)
    if is_cache(root):
        return read_cache(root, split)
    if find_lists(root):
        return read_lists(root, split)
    name = find_official(root)
    if name:
        return OFFICIAL[name].read(root, split)
    if is_tree(root):
        return read_tree(root, split)
    looked_for = {
        official.title: [str(file.relative_to(root)) for file in official.labels_files(root)]
        for official in OFFICIAL.values()
    } | {
        "lists, also in labels and annotations": [format.validation for format in FORMATS],
        "a folder for every class": ["train and val, validation or test"],
    }
    lines = [f"\n  {title}: {', '.join(names)}" for title, names in looked_for.items()]
    raise DataError(f"{root} holds no known data set, looked for" + "".join(lines))
