"""What ranks on several machines have in common, and the differences that are refused by name."""

import dataclasses
import json
import shutil
import socket

import pytest

from taf_fast.data import DataError, read_dataset, scan
from taf_fast.data.synth import write_ssv2
from taf_fast.errors import RunError
from taf_fast.process import ranks
from taf_fast.run.config import FinetuneConfig
from taf_fast.run.equal_values import require_equal_values
from taf_fast.run.scanned import scanned_by_first

SPLITS = ("train", "validation")


@pytest.fixture
def there(tmp_path):
    root = tmp_path / "there"
    write_ssv2(root, train_per_class=1, val_per_class=1, size=(48, 36), frames=(8, 10))
    return root


@pytest.fixture
def scanned_from(there, monkeypatch):
    """Scan a folder as a rank whose first one is on another machine, with its data in ``there``."""

    def scanned(root):
        first = "other", there, [scan(read_dataset(there, split)) for split in SPLITS]
        monkeypatch.setattr(ranks, "from_first", lambda make: first)
        return scanned_by_first([read_dataset(root, split) for split in SPLITS], None, [True, False])

    return scanned


def edit(path, change):
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def test_equal_data_are_read_from_the_own_folder(there, scanned_from, tmp_path):
    here = shutil.copytree(there, tmp_path / "here")
    for found, split in zip(scanned_from(here), SPLITS, strict=True):
        assert found == scan(read_dataset(here, split))
        assert all(clip.path.is_relative_to(here) for clip in found.clips)


def one_label(annotations):
    templates = [entry["template"] for entry in annotations]
    return [annotations[0] | {"template": next(t for t in templates if t != templates[0])}, *annotations[1:]]


@pytest.mark.parametrize(
    "change, message",
    [
        ("label", "clip .* of class .*, expected .* of class "),
        ("clip", "7 clips, expected 8"),
        ("file", "clip [0-9]*: changed since the scan: 100 bytes instead of [0-9]*"),
        ("missing", "clip [0-9]*: missing file"),
    ],
)
def test_a_difference_is_named(there, scanned_from, tmp_path, change, message):
    here = shutil.copytree(there, tmp_path / "here")
    annotations = here / "something-something-v2-validation.json"
    path = next(iter(read_dataset(here, "validation").samples)).path
    if change == "label":
        edit(annotations, one_label)
    elif change == "clip":
        edit(annotations, lambda entries: entries[1:])
    elif change == "file":
        path.write_bytes(path.read_bytes()[:100])
    else:
        path.unlink()
    where = f"the validation data in {here} on {socket.gethostname()} are not those in {there} on other: "
    with pytest.raises(DataError, match=f"^{where}{message}"):
        scanned_from(here)


def test_other_classes_are_named(there, scanned_from, tmp_path):
    here = shutil.copytree(there, tmp_path / "here")
    labels = here / "something-something-v2-labels.json"
    edit(labels, lambda classes: {name: str(7 - int(number)) for name, number in classes.items()})
    with pytest.raises(DataError, match="the train data .*: other classes"):
        scanned_from(here)


def test_other_values_are_named(tmp_path, monkeypatch):
    config = FinetuneConfig(data=tmp_path, out=tmp_path, threads=4)
    for name, value in {"batch_size": 32, "checkpoint_every": 7, "exchange": "bfloat16"}.items():
        other = dataclasses.replace(config, **{name: value})
        values = {field.name: getattr(other, field.name) for field in dataclasses.fields(other)}
        monkeypatch.setattr(ranks, "from_first", lambda make, values=values: ("rank 0 of 2 on a", values))
        mine = f"rank 0 of 1 on {socket.gethostname()}"
        with pytest.raises(
            RunError, match=f"^{name} must be equal on all ranks: .* for {mine}, .* for rank 0"
        ):
            require_equal_values(config)
    same = dataclasses.replace(config, threads=1, out=tmp_path / "out", data=tmp_path / "data")
    values = {field.name: getattr(same, field.name) for field in dataclasses.fields(same)}
    monkeypatch.setattr(ranks, "from_first", lambda make: ("rank 0 of 2 on a", values))
    require_equal_values(config)
