"""A folder for every class: clips, classes, and what does not belong there."""

import shutil

import pytest

from taf_fast.data import ClipLoader, DataError, read_dataset, read_tree, scan


def touch(*files):
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")


@pytest.mark.parametrize("validation", ["val", "validation", "test"])
def test_videos_and_folders_of_frames(roots, tmp_path, validation, by_id, assert_same_clips):
    """The clips of other formats, by class: the same labels and pixels."""
    expected = {}
    for split, folder in (("train", "train"), ("validation", validation)):
        for name in ("ssv2", "ssv1"):
            dataset = read_dataset(roots[name], split)
            for sample in dataset.samples:
                copy = tmp_path / folder / dataset.classes[sample.label] / f"{name}-{sample.path.name}"
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.symlink_to(sample.path)
                expected[split, f"{copy.parent.name}/{copy.name}"] = sample
    touch(tmp_path / "train/.hidden/a.txt", tmp_path / "train/.DS_Store")
    touch(tmp_path / "train" / dataset.classes[0] / ".hidden", tmp_path / "README.txt")
    for split in ("train", "validation"):
        tree = read_dataset(tmp_path, split)
        assert (tree.name, tree.split, tree.classes) == ("folders", split, dataset.classes)
        ids = [id for key, id in expected if key == split]
        assert [sample.id for sample in tree.samples] == sorted(ids, key=lambda id: id.split("/"))
        assert all(sample.label == expected[split, sample.id].label for sample in tree.samples)

    def delivered(manifest):
        settings = dict(num_segments=4, size=32, batch_size=4, train=False)
        return by_id(ClipLoader(manifest, **settings))

    manifest = scan(tree)
    assert len(manifest.good) == 32
    clips = delivered(manifest)
    for name in ("ssv2", "ssv1"):
        official = delivered(scan(read_dataset(roots[name], "validation")))
        prefixed = {id: clip for id, clip in clips.items() if f"/{name}-" in id}
        renamed = {expected["validation", id].id: clip for id, clip in prefixed.items()}
        assert_same_clips(renamed, official)


def test_classes_are_those_of_training(tmp_path):
    touch(tmp_path / "train/b/1.MP4", tmp_path / "val/b/x.webm", tmp_path / "val/b/a/1.txt")
    (tmp_path / "train/a").mkdir()
    assert read_tree(tmp_path, "train").classes == ("a", "b")
    dataset = read_tree(str(tmp_path), "validation")
    assert dataset.classes == ("a", "b") and dataset.root == tmp_path
    assert [(s.id, s.path, s.label, s.frames) for s in dataset.samples] == [
        ("b/a", tmp_path / "val/b/a", 1, None),
        ("b/x.webm", tmp_path / "val/b/x.webm", 1, None),
    ]
    # Of several folders for validation the first is read.
    touch(tmp_path / "test/a/2.avi")
    assert [s.id for s in read_tree(tmp_path, "validation").samples] == ["b/a", "b/x.webm"]
    shutil.rmtree(tmp_path / "val")
    assert [s.id for s in read_tree(tmp_path, "validation").samples] == ["a/2.avi"]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("val/c/1.mp4", "val/c: class 'c' is not among the 1 in {root}/train"),
        ("val/b/00001.jpg", "val/b/00001.jpg: expected folders of frames or videos (.avi, "),
        ("val/b/README", "val/b/README: expected folders of frames or videos"),
        ("val/1.mp4", "val/1.mp4: expected a folder for every class, this is a file"),
        ("train/labels.txt", "train/labels.txt: expected a folder for every class, this is a file"),
    ],
)
def test_what_does_not_belong_there(tmp_path, file, message):
    touch(tmp_path / "train/b/1.mp4", tmp_path / "val/b/2.mp4", tmp_path / file)
    with pytest.raises(DataError) as error:
        read_dataset(tmp_path, "validation")
    assert str(error.value).startswith(f"{tmp_path}/{message.format(root=tmp_path)}")


def test_missing_folders_and_unknown_splits(tmp_path):
    with pytest.raises(DataError, match=f"no folder train in {tmp_path}"):
        read_tree(tmp_path, "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="train: expected a folder for every class, there is none"):
        read_tree(tmp_path, "train")
    (tmp_path / "train/a").mkdir()
    with pytest.raises(DataError, match=f"no folder val nor validation nor test in {tmp_path}"):
        read_tree(tmp_path, "validation")
    with pytest.raises(DataError, match="holds no known data set"):
        read_dataset(tmp_path, "train")
    with pytest.raises(ValueError, match="split must be one of train, validation, got 'test'"):
        read_tree(tmp_path, "test")
