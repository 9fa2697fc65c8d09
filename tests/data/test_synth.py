"""The synthetic data set: official layout, reproducible, and classes that only order in time tells apart."""

import json

import av
import numpy as np
import pytest
from data.video_files import decode

from taf_fast.data import raw_ssv1_classes, read_dataset, read_ssv2, scan
from taf_fast.data.formats.ssv2 import label_text
from taf_fast.data.synth import LONG_TERM, ORDERS, draw_clip, write, write_diving48, write_ssv2


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
        manifest = scan(read_ssv2(clean_root, split))
        assert len(manifest.good) == count and not manifest.defects
        assert {(c.codec, c.size) for c in manifest.clips} == {("vp9", (72, 96))}
        assert all(10 <= clip.frames <= 20 for clip in manifest.clips)
        assert {clip.label for clip in manifest.clips} == set(range(len(ORDERS)))
        with av.open(str(manifest.clips[0].path)) as container:
            assert container.streams.video[0].average_rate == 12


def test_layouts_of_the_other_formats_are_the_official_ones(roots):
    raw = raw_ssv1_classes(roots["ssv1"])
    assert sorted(raw) != list(raw) and set(raw) == {label_text(template) for template in ORDERS}
    vocabulary = json.loads((roots["diving48"] / "Diving48_vocab.json").read_text())
    assert all(len(attributes) == 4 for attributes in vocabulary)
    assert [" ".join(attributes) for attributes in vocabulary] == sorted(raw)
    entries = json.loads((roots["diving48"] / "Diving48_V2_test.json").read_text())
    assert all(entry.keys() == {"vid_name", "label", "start_frame", "end_frame"} for entry in entries)
    frames = sorted((roots["ssv1"] / "20bn-something-something-v1" / "1").iterdir())
    assert [file.name for file in frames] == [f"{n:05d}.jpg" for n in range(1, len(frames) + 1)]


def test_every_format_holds_the_same_clips(roots):
    """Ids, labels, lengths and, up to compression, pictures."""
    for split, count in (("train", 24), ("validation", 16)):
        manifests = {name: scan(read_dataset(root, split)) for name, root in roots.items()}
        for name, codec in (("ssv1", "jpeg"), ("diving48", "h264")):
            assert {clip.codec for clip in manifests[name].clips} == {codec}
            assert len(manifests[name].good) == count
            for clip, other in zip(manifests[name].clips, manifests["ssv2"].clips, strict=True):
                assert (clip.id, clip.label, clip.frames) == (other.id, other.label, other.frames)
                assert clip.size == other.size
        first = {name: decode(manifest.clips[0].path).astype(int) for name, manifest in manifests.items()}
        for name in ("ssv1", "diving48"):
            assert abs(first[name] - first["ssv2"]).mean() < 8
            assert abs(first[name] - first["ssv2"][::-1]).mean() > 8


@pytest.mark.parametrize("format", ["ssv1", "ssv2", "diving48"])
def test_equal_seeds_write_equal_files(tmp_path, monkeypatch, seed, format):
    calls = []

    def written(name, cpus, seed):
        monkeypatch.setattr("os.cpu_count", lambda: cpus)
        write(
            tmp_path / name,
            2,
            1,
            (32, 24),
            (8, 12),
            seed,
            progress=lambda *count: calls.append(count),
            format=format,
        )
        return {
            str(file.relative_to(tmp_path / name)): file.read_bytes()
            for file in (tmp_path / name).rglob("*.*")
        }

    first = written("a", 1, seed)
    assert calls == [(done, 24) for done in range(1, 25)]
    assert first == written("b", 4, seed)
    assert first != written("c", 4, seed + 1)


def test_refuses_to_overwrite_and_impossible_arguments(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(FileExistsError, match="not empty"):
        write_ssv2(tmp_path)
    with pytest.raises(FileExistsError, match="not empty"):
        write_ssv2(tmp_path / "file")
    for wrong in ({"train_per_class": -1}, {"size": (8, 64)}, {"frames": (3, 9)}, {"frames": (9, 8)}):
        with pytest.raises(ValueError):
            write_ssv2(tmp_path / "new", **wrong)
    with pytest.raises(ValueError, match="format must be one of ssv1, ssv2, diving48, got 'ucf101'"):
        write(tmp_path / "new", format="ucf101")
    with pytest.raises(ValueError, match="even for mp4"):
        write_diving48(tmp_path / "new", size=(95, 72))
    assert not (tmp_path / "new").exists()
