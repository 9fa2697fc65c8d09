"""A folder for every class: clips, classes, and what does not belong there."""

import os
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


def test_classes_are_those_with_training_clips(tmp_path):
    touch(tmp_path / "train/b/1.MP4", tmp_path / "val/b/x.webm", tmp_path / "val/b/a/1.txt")
    touch(tmp_path / "train/c/1.mp4")
    (tmp_path / "train/a").mkdir()
    assert read_tree(tmp_path, "train").classes == ("b", "c")
    assert read_tree(tmp_path, "train").unused == (tmp_path / "train/a",)
    dataset = read_tree(str(tmp_path), "validation")
    assert dataset.classes == ("b", "c") and dataset.root == tmp_path
    assert [(s.id, s.path, s.label, s.frames) for s in dataset.samples] == [
        ("b/a", tmp_path / "val/b/a", 0, None),
        ("b/x.webm", tmp_path / "val/b/x.webm", 0, None),
    ]
    # If there are several validation folders, the first is read.
    touch(tmp_path / "test/c/2.avi")
    assert [s.id for s in read_tree(tmp_path, "validation").samples] == ["b/a", "b/x.webm"]
    shutil.rmtree(tmp_path / "val")
    assert [s.id for s in read_tree(tmp_path, "validation").samples] == ["c/2.avi"]


def test_a_class_without_training_clips_is_refused(tmp_path):
    touch(tmp_path / "train/b/1.mp4", tmp_path / "val/c/1.mp4")
    with pytest.raises(DataError, match=f"^{tmp_path}/val/c: class 'c' is not among the 1 with clips in "):
        read_dataset(tmp_path, "validation")


def test_other_files_stop_nothing_and_are_named(tmp_path):
    unused = [
        "val/b/00001.jpg",
        "val/b/README",
        "val/b/sub/x.srt",
        "val/1.mp4",
        "val/labels.txt",
        "val/empty",
    ]
    touch(*(tmp_path / file for file in unused[:-1]), tmp_path / "val/empty/.hidden")
    touch(tmp_path / "train/b/1.mp4", tmp_path / "val/b/2.ts", tmp_path / "val/b/3.3gp")
    (tmp_path / "val/b/gone").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "val/b/pipe")
    (tmp_path / "val/b/4.mp4").symlink_to("4.mp4")
    dataset = read_dataset(tmp_path, "validation")
    # A folder without clips or folders counts as a clip without frames: its frames may have other names.
    assert [s.id for s in dataset.samples] == ["b/2.ts", "b/3.3gp", "b/4.mp4", "b/sub"]
    reasons = list(scan(dataset).defects.values())
    assert reasons[:3] == ["empty file", "empty file", "is a link that leads in a circle"]
    expected = [*unused[:2], *unused[3:], "val/b/gone", "val/b/pipe"]
    assert sorted(dataset.unused) == sorted(tmp_path / file for file in expected)


def test_clips_in_further_folders_and_links_in_circles(tmp_path):
    touch(
        tmp_path / "train/b/day 1/morning/1.mp4", tmp_path / "train/b/day 1/2.mkv", tmp_path / "train/b/3.avi"
    )
    touch(tmp_path / "train/b/day 2/frames/00001.jpg", tmp_path / "val/b/1.mp4")
    touch(tmp_path / "train/c/1.mp4")
    links = ["train/b/day 1/again", "train/b/day 1/all", "train/b/whole"]
    for link, target in zip(links, ("train/b", "train", "."), strict=True):
        (tmp_path / link).symlink_to(tmp_path / target)
    dataset = read_dataset(tmp_path, "train")
    assert [s.id for s in dataset.samples] == [
        "b/3.avi",
        "b/day 1/2.mkv",
        "b/day 1/morning/1.mp4",
        "b/day 2/frames",
        "c/1.mp4",
    ]
    assert dataset.unused == tuple(tmp_path / link for link in links)


def test_names_of_any_bytes(roots, tmp_path, by_id):
    names = [b"\xff\xfe.webm", b"[red] a:b.webm", b"%03d {0}.webm", "\u00e9t\u00e9.webm".encode(), b" .webm"]
    videos = [sample.path for sample in read_dataset(roots["ssv2"], "train").samples]
    for split in (b"train", b"val"):
        folder = os.path.join(os.fsencode(tmp_path), split, b"cl\xe9:s [b]")
        os.makedirs(folder)
        for name, video in zip(names, videos, strict=False):
            shutil.copy(video, os.path.join(folder, name))
    dataset = read_dataset(tmp_path, "train")
    assert dataset.classes == ("cl\\xe9:s [b]",)
    clips = by_id(ClipLoader(scan(dataset), 4, 32, 2, train=False))
    assert len(clips) == 5 and "cl\\xe9:s [b]/\\xff\\xfe.webm" in clips
    for name in (*clips, *dataset.classes):
        name.encode()


def test_a_relative_path_with_a_colon(roots, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(roots["diving48"], "http:data")
    assert not scan(read_dataset("http:data", "train")).defects


def test_missing_folders_and_unknown_splits(tmp_path):
    with pytest.raises(DataError, match=f"no folder train in {tmp_path}"):
        read_tree(tmp_path, "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="train: expected a folder of clips for every class"):
        read_tree(tmp_path, "train")
    touch(tmp_path / "train/a/1.mp4")
    with pytest.raises(DataError, match=f"no folder val nor validation nor test in {tmp_path}"):
        read_tree(tmp_path, "validation")
    with pytest.raises(DataError, match="holds no known data set"):
        read_dataset(tmp_path, "train")
    with pytest.raises(ValueError, match="split must be one of train, validation, got 'test'"):
        read_tree(tmp_path, "test")
