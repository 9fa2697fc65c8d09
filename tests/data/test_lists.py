"""Lists of clips of the models' official code: the same clips and classes as in the data set's own files."""

import os
import shutil
from pathlib import Path

import pytest

from taf_fast.data import DataError, raw_ssv1_classes, read_dataset, read_lists, scan

CSV = "something-something-v1-{}.csv"
SPLITS = ("train", "validation")
TSM = {"train": "train_videofolder.txt", "validation": "val_videofolder.txt"}
GST = {"train": "train.txt", "validation": "valid.txt"}
IBM = {"train": "train.txt", "validation": "val.txt"}
BLVNET = {"train": "training_256.txt", "validation": "validation_256.txt"}


def mmaction2(prefix: str, kind: str = "rawframes") -> dict[str, str]:
    return {"train": f"{prefix}_train_list_{kind}.txt", "validation": f"{prefix}_val_list_{kind}.txt"}


# By project: names, a line, and whether classes are numbered as in Something-Something V1's labels file.
PROJECTS = {
    "tsm": (TSM, "{path} {frames} {label}", False),
    "gst": (GST, "{path}\t{frames}\t{label}", False),
    "ibm": (IBM, "{path} 1 {frames} {label}", True),
    "blvnet": (BLVNET, "{path} 1 {frames} {label}", True),
    "mmaction2": (mmaction2("sthv1"), "{path} {frames} {label}", True),
}


def write_pair(folder: Path, names: dict[str, str], train: str, validation: str = "9 30 0\n") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, text in (("train", train), ("validation", validation)):
        (folder / names[split]).write_text(text)


def by_id(manifest) -> dict:
    return {clip.id: clip for clip in manifest.clips}


@pytest.fixture
def ssv1(roots, tmp_path):
    """A folder with the csv files and a link to the frames, and what they say, by split."""
    root = tmp_path / "data"
    root.mkdir()
    for name in ("labels", *SPLITS):
        shutil.copy(roots["ssv1"] / CSV.format(name), root)
    (root / "20bn-something-something-v1").symlink_to(roots["ssv1"] / "20bn-something-something-v1")
    return root, {split: scan(read_dataset(root, split)) for split in SPLITS}


def write_project(root: Path, project: str, manifests: dict, rng, path: str = "{}") -> None:
    """Lists of a project, in a random order; ``path`` is the template of their paths."""
    names, line, raw = PROJECTS[project]
    classes = manifests["train"].classes
    numbers = raw_ssv1_classes(root) if raw else classes
    for split, manifest in manifests.items():
        lines = [
            line.format(
                path=path.format(clip.id), frames=clip.frames, label=numbers.index(classes[clip.label])
            )
            for clip in manifest.clips
        ]
        rng.shuffle(lines)
        (root / names[split]).write_text("\n".join(lines))
    if not raw:
        (root / "category.txt").write_text("\n".join(classes))


@pytest.mark.parametrize(
    ("project", "csv"),
    [(project, csv) for project in PROJECTS for csv in ("", "annotations", "labels")]
    + [("tsm", None), ("gst", None)],
)
def test_lists_say_what_the_csv_files_say(ssv1, project, csv, rng):
    root, expected = ssv1
    write_project(root, project, expected, rng)
    for file in root.glob("*.csv"):
        if csv is None:
            file.unlink()
        elif csv:
            (root / csv).mkdir(exist_ok=True)
            shutil.move(file, root / csv)
    for split in SPLITS:
        dataset = read_dataset(root, split)
        assert (dataset.name, dataset.split, dataset.root) == ("ssv1", split, root)
        assert dataset.classes == expected["train"].classes == tuple(sorted(dataset.classes))
        lines = (root / PROJECTS[project][0][split]).read_text().splitlines()
        assert [sample.id for sample in dataset.samples] == [line.split()[0] for line in lines]
        manifest = scan(dataset)
        assert not manifest.defects
        assert by_id(manifest) == by_id(expected[split])


@pytest.mark.parametrize("project", PROJECTS)
def test_class_names_from_the_labels_file_alone(ssv1, project, rng):
    root, expected = ssv1
    write_project(root, project, expected, rng)
    (root / "category.txt").unlink(missing_ok=True)
    dataset = read_lists(root, "validation")
    assert dataset.classes == expected["validation"].classes
    assert by_id(scan(dataset)) == by_id(expected["validation"])


@pytest.mark.parametrize(
    "path",
    [
        "20bn-something-something-v1/{}",
        "./20bn-something-something-v1//{}",
        "{root}/20bn-something-something-v1/{}",
        "{real}/20bn-something-something-v1/{}",
        "{tail}/20bn-something-something-v1/{}",
        "{root}//{}/",
    ],
)
@pytest.mark.parametrize("project", ["tsm", "ibm"])
def test_paths_of_every_kind(ssv1, path, project, rng, tmp_path):
    root, expected = ssv1
    (tmp_path / "link").symlink_to(root)
    root = tmp_path / "link"
    path = path.replace("{root}", str(root)).replace("{real}", str(root.resolve()))
    path = path.replace("{tail}", "/".join(root.parts[-2:]))
    write_project(root, project, expected, rng, path)
    manifest = scan(read_dataset(root, "train"))
    assert not manifest.defects
    assert {id: (clip.label, clip.path.resolve()) for id, clip in by_id(manifest).items()} == {
        id: (clip.label, clip.path.resolve()) for id, clip in by_id(expected["train"]).items()
    }
    frames = root / "20bn-something-something-v1"
    assert all(clip.path == frames / clip.id for clip in manifest.clips)


def test_the_projects_own_folders(roots, tmp_path):
    """Lists of videos as MMAction2 writes them, beside those of raw frames; Diving48 keeps its order."""
    for prefix, name, suffix in (("sthv2", "ssv2", ".webm"), ("diving48", "diving48", ".mp4")):
        official = read_dataset(roots[name], "train")
        root = tmp_path / prefix
        shutil.copytree(official.samples[0].path.parent, root / "videos")
        (root / "annotations").mkdir()
        for file in roots[name].glob("*.json"):
            shutil.copy(file, root / "annotations")
        # Without lists the annotations do.
        assert scan(read_dataset(root, "train")).good
        lines = "".join(f"{sample.id}{suffix} {sample.label}\n" for sample in official.samples)
        write_pair(root, mmaction2(prefix, "videos"), lines, f"7{suffix} 0")
        dataset = read_dataset(root, "train")
        assert (dataset.name, dataset.classes) == (name, official.classes)
        assert [(s.id, s.label, s.path, s.frames) for s in dataset.samples] == [
            (s.id, s.label, root / "videos" / s.path.name, None) for s in official.samples
        ]
        assert len(scan(dataset).good) == 24
        write_pair(root, mmaction2(prefix), "5 30 3\n", "6 30 1\n")
        (sample,) = read_dataset(root, "train").samples
        assert (sample.id, sample.label, sample.frames) == ("5", 3, (1, 30))


@pytest.mark.parametrize(
    ("root", "path", "name"),
    [
        ("something/v1", "something/v1/img/7", "ssv1"),
        ("somethingv2", "7", "ssv2"),
        ("data/sthv1", "7", "ssv1"),
        ("any/20bn-something-something-v2-frames", "7", "ssv2"),
        ("any", "20bn-something-something-v1/7", "ssv1"),
        ("any", "7", "list"),
        ("something/v12", "7", "list"),
        ("mysthv1", "7", "list"),
    ],
)
def test_the_data_set_is_known_by_its_folders(tmp_path, root, path, name, monkeypatch):
    root = tmp_path / root
    write_pair(root, TSM, f"{path} 30 1\n")
    dataset = read_dataset(root, "train")
    assert dataset.name == name
    (sample,) = dataset.samples
    # Where something/v1 is the folder itself, paths may begin with it, as those TSM's tool writes.
    assert sample.path == root / path.removeprefix("something/v1/")
    (root / "here").mkdir()
    monkeypatch.chdir(root / "here")
    relative = read_dataset("..", "train")
    assert relative.name == name and relative.samples[0].path.resolve() == sample.path


def test_own_data_sets(tmp_path):
    """Any folders, classes in the order of category.txt, or numbers where there is none."""
    write_pair(tmp_path, GST, "b/1\t3\t2\na b/1\t12\t0\n", "a/2\t5\t4\n")
    for split, labels in (("train", [2, 0]), ("validation", [4])):
        dataset = read_dataset(str(tmp_path), split)
        assert (dataset.name, dataset.classes) == ("list", ("0", "1", "2", "3", "4"))
        assert [sample.label for sample in dataset.samples] == labels
    (tmp_path / "category.txt").write_text("e\nd\nc\nb\r\na \n")
    dataset = read_dataset(tmp_path, "train")
    assert dataset.classes == ("e", "d", "c", "b", "a")
    assert [(s.id, s.path, s.label, s.frames) for s in dataset.samples] == [
        ("b/1", tmp_path / "b/1", 2, (1, 3)),
        ("a b/1", tmp_path / "a b/1", 0, (1, 12)),
    ]


def test_lists_in_a_folder_of_annotations(tmp_path):
    write_pair(tmp_path / "labels", IBM, "a/1 4 30 1\n", "a/2 0 0 0\n")
    (tmp_path / "rawframes/a/1").mkdir(parents=True)
    (sample,) = read_dataset(tmp_path, "train").samples
    assert (sample.path, sample.frames) == (tmp_path / "rawframes/a/1", (4, 30))
    (sample,) = read_dataset(tmp_path, "validation").samples
    assert (sample.path, sample.frames) == (tmp_path / "a/2", (0, 0))


def test_a_few_clips_tell_where_all_are(tmp_path, monkeypatch):
    """One clip in a hundred is enough to find the folder, and looking takes as long for many as for few."""
    lines = "".join(f"{number} 30 0\n" for number in range(20000))
    write_pair(tmp_path, TSM, lines)
    for number in range(0, 20000, 100):
        (tmp_path / "frames" / str(number)).mkdir(parents=True)
    looked_up, exists = [], os.path.exists
    monkeypatch.setattr("os.path.exists", lambda path: (looked_up.append(path), exists(path))[1])
    assert read_dataset(tmp_path, "train").samples[7].path == tmp_path / "frames/7"
    assert len(looked_up) <= 8 * 64


def test_an_announced_clip_without_frames_is_a_defect(tmp_path):
    """TSM's tool counts the files in a folder, and leaves out such clips when training."""
    write_pair(tmp_path, TSM, "7 0 0\n8 0 0\n")
    (tmp_path / "7").mkdir()
    assert scan(read_dataset(tmp_path, "train")).defects.keys() == {"7", "8"}


@pytest.mark.parametrize(
    ("names", "line", "message"),
    [
        (TSM, "7 30", "line 2: expected path, number of frames, class, got '7 30'"),
        (TSM, "7 1 30 5", "line 2: expected path, number of frames, class, got '7 1 30 5'"),
        (TSM, "something 7 30 5", "line 2: expected path, number of frames, class"),
        (GST, "7\t30", "line 2: expected path, number of frames, class"),
        (IBM, "7 30 5", "line 2: expected path, first frame, last frame, class, got '7 30 5'"),
        (IBM, "7 30 5 1 2", "line 2: expected path, first frame, last frame, class"),
        (mmaction2("sthv2"), "7 5", "line 2: expected path, number of frames, class"),
        (mmaction2("sthv2", "videos"), "7.webm 30 5", "line 2: expected path, class, got '7.webm 30 5'"),
        (TSM, "7 x 5", "line 2: number of frames must be a whole number from 0 to 999999, got 'x'"),
        (TSM, "7 -3 5", "line 2: number of frames must be a whole number from 0 to 999999, got '-3'"),
        (TSM, "7 30 -1", "line 2: class must be a whole number from 0 to 999999, got '-1'"),
        (TSM, "7 30 1.5", "class must be a whole number from 0 to 999999, got '1.5'"),
        (TSM, "7 30 \u0663", "class must be a whole number"),
        (TSM, f"7 30 {10**30}", "class must be a whole number from 0 to 999999"),
        (IBM, "7 -1 30 5", "line 2: first frame must be a whole number"),
        (IBM, "7 31 30 5", "line 2: the first frame, 31, comes after the last, 30"),
        (TSM, "1 30 5", "line 2: '1' appears twice"),
        (TSM, "./1 12 3", "line 2: '1' appears twice"),
        (TSM, "{root}/1 12 3", "line 2: '1' appears twice"),
        (mmaction2("sthv2"), "a/1 30 5", "line 2: '1' appears twice"),
        (TSM, "../7 30 5", "line 2: expected the path of a clip in {root}, without .., got '../7'"),
        (TSM, "a/../7 30 5", "line 2: expected the path of a clip in {root}, without .., got 'a/../7'"),
        (TSM, "a/.. 30 5", "line 2: expected the path of a clip in {root}, without .., got 'a/..'"),
        (TSM, "{root}/../7 30 5", "line 2: expected the path of a clip in {root}, without .., got "),
        (TSM, ". 30 5", "line 2: expected the path of a clip in {root}, without .., got '.'"),
        (TSM, "a\0 30 5", "line 2: expected the path of a clip in {root}, without .., got "),
        (TSM, "/etc/7 30 5", "line 2: expected the path of a clip in {root}, without .., got '/etc/7'"),
        (TSM, "//etc/7 30 5", "line 2: expected the path of a clip in {root}, without .., got '//etc/7'"),
        (TSM, "{root}2/7 30 5", "line 2: expected the path of a clip in {root}, without .., got '{root}2/7'"),
        (TSM, "{root} 30 5", "expected the path of a clip in {root}, without .."),
    ],
)
def test_wrong_lines_are_named(tmp_path, names, line, message):
    root = tmp_path / "data"
    first = {2: "1.webm 0", 3: "1 30 0", 4: "1 1 30 0"}[
        4 if names is IBM else 2 if "videos" in names["train"] else 3
    ]
    write_pair(root, names, f"{first}\n{line.format(root=root)}\n")
    with pytest.raises(DataError) as error:
        read_dataset(root, "train")
    assert str(root / names["train"]) in str(error.value)
    assert message.format(root=root) in str(error.value)


def test_paths_with_spaces_and_of_any_bytes(tmp_path):
    """A byte order mark, CRLF and spaces at the end are no part of a list."""
    content = b"\xef\xbb\xbfmy video 2.mp4 0  \r\n\xff[x]%d.mp4 1\r\n"
    for split in ("train", "val"):
        (tmp_path / f"diving48_{split}_list_videos.txt").write_bytes(content)
    samples = read_dataset(tmp_path, "train").samples
    assert [sample.id for sample in samples] == ["my video 2", "\\xff[x]%d"]
    assert [os.fsencode(sample.path.name) for sample in samples] == [b"my video 2.mp4", b"\xff[x]%d.mp4"]
    assert [sample.label for sample in samples] == [0, 1]


def test_wrong_files_are_named(tmp_path):
    write_pair(tmp_path, TSM, " \n\n")
    with pytest.raises(DataError, match="train_videofolder.txt: expected lines of path, number of frames"):
        read_lists(tmp_path, "train")
    (tmp_path / TSM["train"]).write_bytes(b"7 30 \xff")
    with pytest.raises(DataError, match=r"line 1: class must be a whole number from 0 to 999999, got "):
        read_lists(tmp_path, "train")
    (tmp_path / TSM["train"]).unlink()
    with pytest.raises(DataError, match="no train_videofolder.txt next to val_videofolder.txt in "):
        read_lists(tmp_path, "train")
    with pytest.raises(ValueError, match="split must be one of train, validation, got 'test'"):
        read_lists(tmp_path, "test")
    (tmp_path / TSM["validation"]).unlink()
    with pytest.raises(DataError, match="expected the lists of one data set, found none"):
        read_lists(tmp_path, "train")


@pytest.mark.parametrize(
    ("category", "message"),
    [
        ("", "category.txt: expected one label per line"),
        ("a\na\n", "category.txt: label 'a' appears twice"),
        ("a\nb\n", r"train_videofolder.txt: line 1: class 2 is not in 0\.\.1"),
    ],
)
def test_categories_that_do_not_fit(tmp_path, category, message):
    write_pair(tmp_path, TSM, "7 30 2\n")
    (tmp_path / "category.txt").write_text(category)
    with pytest.raises(DataError, match=message):
        read_dataset(tmp_path, "train")


def test_an_order_in_doubt_is_refused(tmp_path):
    root = tmp_path / "sthv1"
    write_pair(root, TSM, "7 30 2\n")
    (root / "category.txt").write_text("b\na\nc\n")
    with pytest.raises(DataError, match="category.txt: .*Something-Something V1 in alphabetical order"):
        read_dataset(root, "train")
    (root / "category.txt").write_text("a\nb\nc\n")
    assert read_dataset(root, "train").classes == ("a", "b", "c")

    for names in (IBM, mmaction2("sthv1")):
        for file in root.glob("*.txt"):
            if file.name != "category.txt":
                file.unlink()
        write_pair(root, names, "7 1 30 2\n" if names is IBM else "7 30 2\n")
        # Of these lists it says nothing.
        with pytest.raises(DataError, match="numbers the classes by the lines of something-something-v1"):
            read_dataset(root, "train")


def test_lists_of_several_data_sets_are_refused(tmp_path):
    write_pair(tmp_path, GST, "7 30 2\n")
    write_pair(tmp_path, IBM, "7 30 2\n")
    with pytest.raises(DataError, match="one data set, found .*valid.txt, .*val.txt"):
        read_dataset(tmp_path, "train")
    for file in tmp_path.iterdir():
        file.unlink()
    write_pair(tmp_path, mmaction2("sthv1"), "7 30 2\n")
    write_pair(tmp_path, mmaction2("sthv2", "videos"), "7.webm 2\n")
    with pytest.raises(DataError, match="found .*sthv1_val_list_rawframes.txt, .*sthv2_val_list_videos.txt"):
        read_dataset(tmp_path, "train")
