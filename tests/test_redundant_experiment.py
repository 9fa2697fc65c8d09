"""The experiment with redundant cues: its clips are as described, its pages show what its script prints."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from taf_fast.data import read_dataset
from taf_fast.files import read_csv

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "experiments" / "redundant"
WHEN = ROOT / "docs" / "when.md"


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_data = script("make_data")
# Four digits of each class, full of ink.
LABELS = np.random.default_rng(5).permutation(np.repeat(np.arange(10), 4))
IMAGES = np.full((40, 8, 8), 16.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    make_data.write(folder, IMAGES, LABELS, {"train": 1, "val": 1}, seed=3)
    return folder


def changed(clip: np.ndarray, other: np.ndarray) -> list[int]:
    """The frames in which two clips differ."""
    return np.flatnonzero((clip != other).any((1, 2, 3))).tolist()


def test_cues_are_in_their_frames_and_nowhere_else(seed):
    ink = {cue: np.full((8, 8), 16.0) for cue in make_data.CUES}
    starts = {cue: set() for cue in make_data.CUES}
    for draw in range(20):
        versions, spans = make_data.draw_clip(np.random.default_rng((seed, draw)), ink)
        blank, _ = make_data.draw_clip(
            np.random.default_rng((seed, draw)), {cue: np.zeros((8, 8)) for cue in make_data.CUES}
        )
        inside = {cue: list(range(first, last + 1)) for cue, (first, last) in spans.items()}
        assert changed(versions["both"], blank["both"]) == inside["easy"] + inside["hard"]
        assert changed(versions["both"], versions["hard"]) == inside["easy"]
        # Easy: bright and still. Hard: fainter, smaller and in motion.
        easy, hard = (versions["both"][inside[cue]].mean(-1) for cue in make_data.CUES)
        assert (easy > 150).mean() > 1.2 * (hard > 150).mean()
        for cue, (first, last) in spans.items():
            assert first % 3 == 0 and last - first + 1 == {"easy": 6, "hard": 9}[cue]
            starts[cue].add(first)
    assert starts == {"easy": {0, 3, 6}, "hard": {12, 15}}


def test_half_of_the_validation_clips_lack_the_easy_cue(data):
    rows = read_csv(data / "cues.csv")
    for split, folder, versions in (
        ("train", "train", ["both"]),
        ("validation", "val", ["both", "hard"]),
    ):
        written = [row for row in rows if row["split"] == folder]
        assert [row["version"] for row in written] == 10 * versions
        assert {sample.id for sample in read_dataset(data, split).samples} == {row["id"] for row in written}


def test_a_written_clip_has_its_cues(data):
    rows = [row for row in read_csv(data / "cues.csv") if row["split"] == "val"]
    for row in rows:
        frames = np.stack([Image.open(path) for path in sorted((data / "val" / row["id"]).iterdir())])
        brightness = frames.mean((1, 2, 3))
        cues = make_data.VERSIONS[row["version"]]
        spans = [range(int(row[f"{cue}_first"]), int(row[f"{cue}_last"]) + 1) for cue in cues]
        assert frames.shape == (24, 36, 36, 3)
        assert np.flatnonzero(brightness > brightness.min() + 8).tolist() == [
            n for span in spans for n in span
        ]


def test_no_digit_is_shown_twice(data):
    rows = [row for row in read_csv(data / "cues.csv") if row["version"] == "both"]
    shown = [(row, int(row[f"{cue}_digit"])) for row in rows for cue in ("easy", "hard")]
    assert all(row["id"].split("/")[0] == make_data.CLASSES[LABELS[digit]] for row, digit in shown)
    assert sorted(digit for _, digit in shown) == list(range(40))
    assert {row["split"] for row in rows} == {"train", "val"}


def test_more_validation_clips_leave_the_others_alone():
    few, many = (list(make_data.planned(LABELS, {"train": 1, "val": count}, 3)) for count in (0, 1))
    assert len(few) == 10 and [clip for clip in many if clip[0] == "train"] == few


def test_more_clips_than_digits_are_refused(tmp_path):
    with pytest.raises(ValueError, match="digits for 2 clips"):
        make_data.write(tmp_path, IMAGES, LABELS, {"train": 2, "val": 1}, seed=3)
    assert not list(tmp_path.iterdir())


def test_the_pages_show_what_the_script_prints(capsys):
    tables = script("tables")
    tables.main(tables.RESULTS)
    table = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)
    printed = table.findall(capsys.readouterr().out)
    page, when = (path.read_text(encoding="utf-8") for path in (FOLDER / "README.md", WHEN))
    assert len(printed) == 7 and table.findall(page) == printed
    assert table.findall(when) == printed[-1:]


def test_the_seeds_that_a_difference_needs():
    # G*Power's approximation by the normal distribution: 31.4 pairs for a difference of half a deviation.
    needed = script("tables").seeds_needed
    assert needed(2.0) == 32 and needed(1.0, 0.5) == 32 and needed(0.5) == 2
