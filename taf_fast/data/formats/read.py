"""Finding out which data set a folder holds."""

import os
from pathlib import Path

from taf_fast.data.cache.read import is_cache, read_cache
from taf_fast.data.clip import VideoDataset
from taf_fast.data.formats.lists import FORMATS, find_lists, read_lists
from taf_fast.data.formats.official import OFFICIAL, find_official
from taf_fast.data.formats.tree import is_tree, read_tree
from taf_fast.errors import DataError
from taf_fast.files import require_data_folder


def read_dataset(root: str | os.PathLike, split: str) -> VideoDataset:
    """Reads the annotations of ``split`` ("train" or "validation") of the data set in ``root``.

    The first reader whose files exist is used:

    - ``read_cache``: a cache written by taf-fast scan --cache.
    - ``read_lists``: lists of clips, as used by the official code of the models. They come before the
      official files, which are often in the same folder, because only lists tell where extracted frames are.
    - ``read_ssv1``, ``read_ssv2`` or ``read_diving48``: a file with the data set's class names.
    - ``read_tree``: folders for training and validation that hold one folder per class.

    DataError if there is no such folder or none of these, or lists or class names of several data sets, and
    as raised by the reader.
    """
    root = Path(root)
    require_data_folder(root)
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
    places = [f"{title}: {', '.join(names)}" for title, names in looked_for.items()]
    raise DataError(f"{root} holds no known data set, looked for {'; '.join(places)}")
