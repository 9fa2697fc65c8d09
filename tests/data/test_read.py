"""The readers of Something-Something-V1 and Diving48, and finding out which data set a folder holds."""

import json
import shutil

import pytest

from taf_fast.data import DataError, raw_ssv1_classes, read_dataset, read_diving48, read_ssv1

SSV1 = {"labels": "Moving up\nHolding a; b\nHolding\n", "train": "7;Holding\n100;Moving up\n9;Holding a; b\n"}
VOCABULARY = [["Back", "15som", "05Twis", "FREE"], ["Back", "15som", "15Twis", "FREE"]]
DIVE = {"vid_name": "_8Vy_0001", "label": 1, "start_frame": 0, "end_frame": 148}


def write_ssv1(root, **files):
    root.mkdir(parents=True, exist_ok=True)
    for name, text in (SSV1 | files).items():
        data = text if isinstance(text, bytes) else text.encode()
        (root / f"something-something-v1-{name}.csv").write_bytes(data)


def write_diving48(root, version="Diving48_V2_", vocabulary=VOCABULARY, **files):
    root.mkdir(parents=True, exist_ok=True)
    (root / "Diving48_vocab.json").write_text(json.dumps(vocabulary))
    for name, content in ({"train": [DIVE], "test": []} | files).items():
        (root / f"{version}{name}.json").write_text(json.dumps(content))


@pytest.mark.parametrize("folder", ["20bn-something-something-v1", ""])
def test_ssv1(tmp_path, folder):
    write_ssv1(tmp_path)
    (tmp_path / folder).mkdir(exist_ok=True)
    dataset = read_ssv1(tmp_path, "train")
    assert dataset.name == "ssv1" and dataset.split == "train"
    assert dataset.classes == ("Holding", "Holding a; b", "Moving up")
    assert [(s.id, s.label) for s in dataset.samples] == [("7", 0), ("100", 2), ("9", 1)]
    assert all(s.path == tmp_path / folder / s.id for s in dataset.samples)
    assert raw_ssv1_classes(tmp_path) == ("Moving up", "Holding a; b", "Holding")


def test_ssv1_lines_may_end_in_any_way(tmp_path):
    write_ssv1(tmp_path, labels="b\r\na  \r\n\r\n", train="1;a\r\n2;b \r\n")
    dataset = read_ssv1(tmp_path, "train")
    assert dataset.classes == ("a", "b") and [s.label for s in dataset.samples] == [0, 1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels": ""}, "labels.csv: expected one label per line"),
        ({"labels": "a\nb\na\n"}, "labels.csv: label 'a' appears twice"),
        ({"labels": b"\xff"}, r"labels.csv: not UTF-8 text \(byte 0\)"),
        ({"train": "7;Holding\n\n8\n"}, "train.csv: line 3: expected id;label, got '8'"),
        ({"train": "7;Eating\n"}, r"train.csv: line 1 \(id '7'\): 'Eating' is not among the 3 labels"),
        ({"train": "7;Holding\n7;Holding\n"}, "train.csv: line 2: id '7' appears twice"),
        ({"train": "../7;Holding\n"}, "train.csv: line 1: id '../7' is not a plain file name"),
        ({"train": "..;Holding\n"}, "train.csv: line 1: id '..' is not a plain file name"),
        ({"train": "/etc/7;Holding\n"}, "train.csv: line 1: id '/etc/7' is not a plain file name"),
        ({"train": ";Holding\n"}, "train.csv: line 1: id '' is not a plain file name"),
    ],
)
def test_wrong_ssv1_files_are_named(tmp_path, wrong, message):
    write_ssv1(tmp_path, **wrong)
    with pytest.raises(DataError, match=message):
        read_ssv1(tmp_path, "train")


def test_diving48(tmp_path):
    write_diving48(tmp_path, test=[DIVE | {"vid_name": "b", "label": 0}])
    dataset = read_diving48(tmp_path, "train")
    assert dataset.name == "diving48"
    assert dataset.classes == ("Back,15som,05Twis,FREE", "Back,15som,15Twis,FREE")
    (sample,) = dataset.samples
    assert (sample.id, sample.label) == ("_8Vy_0001", 1)
    assert sample.path == tmp_path / "rgb" / "_8Vy_0001.mp4"
    assert [s.id for s in read_diving48(tmp_path, "validation").samples] == ["b"]


@pytest.mark.parametrize("version", ["Diving48_", "Diving48_V1_"])
def test_diving48_version_1_only_without_version_2(tmp_path, version):
    write_diving48(tmp_path, version)
    assert [s.label for s in read_diving48(tmp_path, "train").samples] == [1]
    write_diving48(tmp_path, train=[DIVE | {"label": 0}])
    assert [s.label for s in read_diving48(tmp_path, "train").samples] == [0]
    # The versions' splits overlap: one of each is a mistake.
    (tmp_path / "Diving48_V2_test.json").unlink()
    with pytest.raises(DataError, match="no Diving48_V2_test.json"):
        read_diving48(tmp_path, "validation")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"vocabulary": {}}, "vocab.json: expected a list"),
        ({"vocabulary": []}, "vocab.json: expected different classes, got 0"),
        ({"vocabulary": VOCABULARY + VOCABULARY[:1]}, "got 3 with 2 names"),
        ({"vocabulary": [["Back", "15som"]]}, "vocab.json: entry 0: expected a list of 4 texts"),
        ({"vocabulary": [["Back", "15som", 5, "FREE"]]}, "vocab.json: entry 0: expected a list of 4 texts"),
        ({"train": {}}, "train.json: expected a list"),
        ({"train": [7]}, "train.json: entry 0: expected an object"),
        ({"train": [{"label": 1}]}, "train.json: entry 0: key 'vid_name' is missing"),
        ({"train": [DIVE | {"label": "1"}]}, "train.json: entry 0: 'label' must be a whole number"),
        ({"train": [DIVE | {"label": True}]}, "train.json: entry 0: 'label' must be a whole number"),
        ({"train": [DIVE | {"label": 2}]}, r"entry 0 \(id '_8Vy_0001'\): label 2 is not in 0..1"),
        ({"train": [DIVE | {"label": -1}]}, "label -1 is not in 0..1"),
        ({"train": [DIVE, DIVE]}, "train.json: entry 1: id '_8Vy_0001' appears twice"),
        ({"train": [DIVE | {"vid_name": "../7"}]}, "entry 0: id '../7' is not a plain file name"),
        ({"train": [DIVE | {"vid_name": "/etc/7"}]}, "entry 0: id '/etc/7' is not a plain file name"),
    ],
)
def test_wrong_diving48_files_are_named(tmp_path, wrong, message):
    write_diving48(tmp_path, **wrong)
    with pytest.raises(DataError, match=message):
        read_diving48(tmp_path, "train")


@pytest.mark.parametrize("read", [read_ssv1, read_diving48, read_dataset])
def test_missing_files_and_unknown_splits(tmp_path, read):
    write = write_diving48 if read is read_diving48 else write_ssv1
    with pytest.raises(DataError, match=str(tmp_path)):
        read(tmp_path, "train")
    write(tmp_path)
    with pytest.raises(ValueError, match="split must be one of train, validation, got 'test'"):
        read(tmp_path, "test")
    for file in tmp_path.glob("*train*"):
        file.unlink()
    with pytest.raises(DataError, match=r"no .*train.* in"):
        read(tmp_path, "train")


def test_the_format_is_found_out(roots, tmp_path):
    for name, root in roots.items():
        dataset = read_dataset(str(root), "validation")
        assert dataset.name == name and len(dataset.samples) == 16 and len(dataset.classes) == 8
    write_ssv1(tmp_path)
    write_diving48(tmp_path)
    with pytest.raises(DataError, match="found several: .*v1-labels.csv, .*vocab.json"):
        read_dataset(tmp_path, "train")


def test_what_was_looked_for_is_listed(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError) as error:
        read_dataset(tmp_path / "none", "train")
    before, _, places = str(error.value).partition(", looked for ")
    assert before == f"{tmp_path / 'none'} holds no known data set"
    looked_for = {
        title: files.split(", ")
        for title, _, files in (place.partition(": ") for place in places.split("; "))
    }
    assert looked_for.keys() == {
        "Something-Something V1",
        "Something-Something V2",
        "Diving48",
        "lists, also in labels and annotations",
        "a folder for every class",
    }
    assert looked_for["Something-Something V2"][:3] == [
        "something-something-v2-labels.json",
        "labels.json",
        "labels/something-something-v2-labels.json",
    ]
    assert "annotations/something-something-v1-labels.csv" in looked_for["Something-Something V1"]
    assert "annotations/Diving48_vocab.json" in looked_for["Diving48"]
    lists = looked_for["lists, also in labels and annotations"]
    assert {"val_videofolder.txt", "valid.txt", "sthv2_val_list_videos.txt"} < set(lists)


def test_lists_come_before_the_files_they_were_made_from_and_folders_last(tmp_path):
    write_ssv1(tmp_path)
    for folder in ("train", "val"):
        (tmp_path / folder / "a").mkdir(parents=True)
    assert read_dataset(tmp_path, "train").name == "ssv1"
    for name in ("train", "val"):
        (tmp_path / f"{name}_videofolder.txt").write_text("val/a 30 2\n")
    dataset = read_dataset(tmp_path, "train")
    assert (dataset.name, dataset.classes) == ("ssv1", ("Holding", "Holding a; b", "Moving up"))
    assert [(s.id, s.label, s.path) for s in dataset.samples] == [("a", 2, tmp_path / "val/a")]


def test_annotations_in_a_folder_of_their_own(tmp_path):
    """As MMAction2 lays them."""
    write_ssv1(tmp_path / "ssv1/annotations")
    (tmp_path / "ssv1/rawframes/7").mkdir(parents=True)
    assert read_dataset(tmp_path / "ssv1", "train").samples[1].path == tmp_path / "ssv1/rawframes/100"
    assert raw_ssv1_classes(tmp_path / "ssv1") == ("Moving up", "Holding a; b", "Holding")
    write_diving48(tmp_path / "dive/annotations")
    (tmp_path / "dive/videos").mkdir()
    (sample,) = read_dataset(tmp_path / "dive", "train").samples
    assert sample.path == tmp_path / "dive/videos/_8Vy_0001.mp4"
    (tmp_path / "dive/rawframes/_8Vy_0001").mkdir(parents=True)
    (sample,) = read_dataset(tmp_path / "dive", "train").samples
    assert sample.path == tmp_path / "dive/rawframes/_8Vy_0001"


def rewritten(root, change):
    for file in root.rglob("*.json"):
        file.write_bytes(change(file.read_bytes()))
    for file in root.rglob("*.csv"):
        file.write_bytes(change(file.read_bytes()))


@pytest.mark.parametrize("name", ["ssv1", "ssv2", "diving48"])
def test_annotations_with_a_bom_crlf_and_spaces(roots, tmp_path, name):
    root = shutil.copytree(roots[name], tmp_path / name)
    expected = read_dataset(root, "train")
    rewritten(root, lambda content: b"\xef\xbb\xbf" + content.replace(b"\n", b" \r\n"))
    if name != "ssv1":
        rewritten(
            root, lambda content: content.replace(b'"Moving', b'" Moving').replace(b'middle"', b'middle "')
        )
    assert read_dataset(root, "train") == expected


@pytest.mark.parametrize(("name", "suffix"), [("ssv2", ".MP4"), ("diving48", ".avi"), ("ssv2", ".mkv")])
def test_videos_of_any_suffix(roots, tmp_path, name, suffix):
    root = shutil.copytree(roots[name], tmp_path / name)
    first, *others = read_dataset(root, "train").samples
    first.path.rename(first.path.with_suffix(suffix))
    found, *same = read_dataset(root, "train").samples
    assert found.path == first.path.with_suffix(suffix) and same == others
    for sample in others:
        sample.path.rename(sample.path.with_suffix(suffix))
    assert {sample.path.suffix for sample in read_dataset(root, "train").samples} == {suffix}
