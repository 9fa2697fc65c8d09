"""The synthetic data set: official layout, reproducible, and classes that only order in time tells apart."""

import json

import av
import numpy as np
import pytest

from taf_fast.data import read_ssv2, scan
from taf_fast.data.ssv2 import label_text
from taf_fast.data.synth import LONG_TERM, ORDERS, draw_clip, write_ssv2


@pytest.mark.parametrize("n", [4, 9, 16, 33])
def test_classes_are_permutations_of_the_same_pictures(n, seed):
    def draw(template):
        images, name = draw_clip(template, np.random.default_rng(seed), n, 48, 32)
        return [image.tobytes() for image in images], name

    clips = {template: draw(template) for template in ORDERS}
    assert len({tuple(images) for images, _ in clips.values()}) == len(ORDERS) >= 8
    assert len({tuple(sorted(images)) for images, _ in clips.values()}) == 1
    assert len({name for _, name in clips.values()}) == 1


def test_object_moves_as_the_class_says(seed):
    """The object's column, found as the change against the mean picture, follows the class's order."""
    n = 12
    for template, order in ORDERS.items():
        images, _ = draw_clip(template, np.random.default_rng(seed), n, 96, 48)
        change = abs(images.astype(float) - np.median(images, axis=0)).sum((1, 3))
        column = (change**2 * np.arange(96)).sum(1) / (change**2).sum(1)
        assert np.corrcoef(column, order(n))[0, 1] > 0.9, template


def test_layout_is_the_official_one(clean_root):
    labels = json.loads((clean_root / "something-something-v2-labels.json").read_text())
    assert list(labels) == sorted(labels) and list(labels.values()) == [str(i) for i in range(len(ORDERS))]
    entries = json.loads((clean_root / "something-something-v2-train.json").read_text())
    assert all(entry.keys() == {"id", "label", "template", "placeholders"} for entry in entries)
    assert {entry["template"] for entry in entries} == set(ORDERS)
    assert {label_text(template) for template in ORDERS} == set(labels) > set(LONG_TERM) != set()
    for split, count in (("train", 24), ("validation", 16)):
        manifest = scan(read_ssv2(clean_root, split), 8)
        assert len(manifest.good) == count and not manifest.defects
        assert {(c.codec, c.width, c.height) for c in manifest.clips} == {("vp9", 96, 72)}
        assert all(10 <= clip.frames <= 20 for clip in manifest.clips)
        assert {clip.label for clip in manifest.clips} == set(range(len(ORDERS)))
        with av.open(str(manifest.clips[0].path)) as container:
            assert container.streams.video[0].average_rate == 12


def test_equal_seeds_write_equal_files(tmp_path, monkeypatch, seed):
    calls = []

    def write(name, cpus, seed):
        monkeypatch.setattr("os.cpu_count", lambda: cpus)
        write_ssv2(
            tmp_path / name, 2, 1, (32, 24), (8, 12), seed, progress=lambda *count: calls.append(count)
        )
        return {
            str(file.relative_to(tmp_path / name)): file.read_bytes()
            for file in (tmp_path / name).rglob("*.*")
        }

    first = write("a", 1, seed)
    assert calls == [(done, 24) for done in range(1, 25)]
    assert first == write("b", 4, seed)
    assert first != write("c", 4, seed + 1)


def test_refuses_to_overwrite_and_impossible_arguments(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(FileExistsError, match="not empty"):
        write_ssv2(tmp_path)
    with pytest.raises(FileExistsError, match="not empty"):
        write_ssv2(tmp_path / "file")
    for wrong in ({"train_per_class": -1}, {"size": (8, 64)}, {"frames": (3, 9)}, {"frames": (9, 8)}):
        with pytest.raises(ValueError):
            write_ssv2(tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()
