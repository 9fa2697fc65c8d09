"""The annotation reader: both generations of names, and every way a file can be wrong."""

import json

import pytest

from taf_fast.data import DataError, read_ssv2

LABELS = {"Holding something": "0", "Moving something up": "1"}
ENTRY = {
    "id": "7",
    "label": "moving a cup up",
    "template": "Moving [something] up",
    "placeholders": ["a cup"],
}


def write(root, labels=LABELS, train=(ENTRY,), prefix="something-something-v2-"):
    root.mkdir(parents=True, exist_ok=True)
    for name, content in (("labels", labels), ("train", train)):
        text = content if isinstance(content, str) else json.dumps(content)
        (root / f"{prefix}{name}.json").write_text(text)


@pytest.mark.parametrize("prefix", ["something-something-v2-", ""])
@pytest.mark.parametrize("annotations", ["", "labels", "annotations"])
@pytest.mark.parametrize("videos", ["20bn-something-something-v2", "videos", ""])
def test_both_generations_of_names_and_folders(tmp_path, prefix, annotations, videos):
    write(tmp_path / annotations, prefix=prefix)
    (tmp_path / videos).mkdir(exist_ok=True)
    dataset = read_ssv2(tmp_path, "train")
    assert dataset.classes == ("Holding something", "Moving something up")
    (sample,) = dataset.samples
    assert (sample.id, sample.label, sample.path) == ("7", 1, tmp_path / videos / "7.webm")


FRAMES = [
    "20bn-something-something-v2-frames",
    "rawframes",
    "frames",
    "20bn-something-something-v2",
    "videos",
    "",
]


@pytest.mark.parametrize("folder", FRAMES)
def test_extracted_frames(tmp_path, folder):
    """Frames are read if there are no videos; some clips may be missing."""
    write(tmp_path, train=[ENTRY | {"id": str(number)} for number in range(300)])
    for name in FRAMES[:-1]:
        (tmp_path / name).mkdir()
    for number in range(0, 300, 2):
        (tmp_path / folder / str(number)).mkdir()
    paths = [sample.path for sample in read_ssv2(tmp_path, "train").samples]
    assert paths == [tmp_path / folder / str(number) for number in range(300)]
    (tmp_path / "videos/70.webm").write_bytes(b"")
    assert read_ssv2(tmp_path, "train").samples[7].path == tmp_path / "videos/7.webm"


def test_classes_are_ordered_by_index(tmp_path):
    write(tmp_path, labels={"Moving something up": "1", "Holding something": "0"})
    assert read_ssv2(tmp_path, "train").classes == ("Holding something", "Moving something up")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels": '{"a": "0",\n "b" "1"}'}, r"labels.json: line 2, column 6"),
        ({"train": "[1, 2"}, r"train.json: line 1, column 6"),
        ({"labels": ["Holding something"]}, "labels.json: expected an object"),
        ({"labels": {}}, "labels.json: the indices of 0 labels"),
        ({"labels": {"a": "0", "b": "2"}}, "labels.json: the indices of 2 labels must be 0..n-1"),
        ({"labels": {"a": "0", "b": "0"}}, "labels.json: the indices of 2 labels must be 0..n-1"),
        ({"labels": {"a": "first"}}, "labels.json: label 'a': expected an index"),
        ({"labels": {"a": None}}, "labels.json: label 'a': expected an index"),
        ({"train": {"7": ENTRY}}, "train.json: expected a list"),
        ({"train": [ENTRY, "8"]}, "train.json: entry 1: expected an object"),
        ({"train": [{"id": "7"}]}, "train.json: entry 0: key 'template' is missing"),
        ({"train": [{"template": "Holding [something]"}]}, "train.json: entry 0: key 'id' is missing"),
        ({"train": [ENTRY | {"id": 7}]}, "train.json: entry 0: 'id' must be text"),
        ({"train": [ENTRY | {"template": "Eating"}]}, r"entry 0 \(id '7'\): 'Eating' is not among the 2"),
        ({"train": [ENTRY, ENTRY]}, "train.json: entry 1: id '7' appears twice"),
        ({"train": [ENTRY | {"id": "../7"}]}, "id '../7' is not a plain file name"),
        ({"train": [ENTRY | {"id": ".."}]}, "not a plain file name"),
        ({"train": [ENTRY | {"id": "/etc/7"}]}, "not a plain file name"),
        ({"train": [ENTRY | {"id": "a\\7"}]}, "not a plain file name"),
        ({"train": [ENTRY | {"id": ""}]}, "not a plain file name"),
    ],
)
def test_wrong_files_are_named(tmp_path, wrong, message):
    write(tmp_path, **wrong)
    with pytest.raises(DataError, match=message):
        read_ssv2(tmp_path, "train")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match="something-something-v2-labels.json nor labels.json"):
        read_ssv2(tmp_path, "train")
    write(tmp_path)
    with pytest.raises(DataError, match="something-something-v2-validation.json nor validation.json"):
        read_ssv2(tmp_path, "validation")


def test_text_that_is_not_utf8(tmp_path):
    write(tmp_path)
    (tmp_path / "something-something-v2-train.json").write_bytes(b'["\xff"]')
    with pytest.raises(DataError, match=r"train.json: not UTF-8 text \(byte 2\)"):
        read_ssv2(tmp_path, "train")


def test_unknown_split(tmp_path):
    with pytest.raises(ValueError, match="'test'"):
        read_ssv2(tmp_path, "test")
