"""How extracted frames may be called and numbered: the same pixels by any name."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from taf_fast.data import ClipLoader, Manifest, VideoDataset, read_dataset, scan
from taf_fast.data.clip import FrameFolder, Sample

TEMPLATES = ["{:05d}.jpg", "{:06d}.jpg", "img_{:05d}.jpg", "img_{:06d}.jpg"]


@pytest.fixture
def folder(tmp_path, rng) -> Path:
    """Twelve different frames, 00001.jpg to 00012.jpg."""
    folder = tmp_path / "clip"
    folder.mkdir()
    for number in range(1, 13):
        image = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / f"{number:05d}.jpg")
    return folder


def rename(folder: Path, template: str, first: int) -> None:
    # Numbers go up or down: no file may take the place of one that is still to be renamed.
    files = sorted(folder.iterdir())
    for number, file in enumerate(files, first):
        file.rename(folder / f"new-{number}")
    for number in range(first, first + len(files)):
        (folder / f"new-{number}").rename(folder / template.format(number))


def scan_folder(folder: Path, frames: tuple[int, int] | None = None):
    samples = (Sample("clip", folder, 0, frames),)
    return scan(VideoDataset(folder.parent, "train", ("a",), samples, "list")).clips[0]


def read_pixels(clips, train=False, seed=0) -> dict:
    """Return the frames that the loader delivers for each clip."""
    manifest = Manifest(("a",) * 8, tuple(clips))
    loader = ClipLoader(manifest, num_segments=8, size=16, batch_size=4, train=train, seed=seed)
    delivered = {id: clip for batch in loader for id, clip in zip(batch.ids, batch.clips, strict=True)}
    assert not loader.quarantined
    return delivered


@pytest.mark.slow
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("train", [False, True])
def test_the_same_pixels_by_any_name(roots, tmp_path, template, first, train, seed, assert_same_clips):
    expected = scan(read_dataset(roots["ssv1"], "train"))
    root = shutil.copytree(roots["ssv1"], tmp_path / "copy")
    dataset = read_dataset(root, "train")
    for sample in dataset.samples:
        rename(sample.path, template, first)
        (sample.path / "flow_x_00001.jpg").write_bytes(b"")
        (sample.path / "Thumbs.db").write_bytes(b"")
    manifest = scan(dataset)
    for clip, other in zip(manifest.clips, expected.clips, strict=True):
        assert clip == replace(other, path=clip.path, source=FrameFolder(template, first))
        assert all(file.is_file() for file in clip.files)
    assert_same_clips(read_pixels(manifest.clips, train, seed), read_pixels(expected.clips, train, seed))


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_part_of_the_folder(folder, tmp_path, template, assert_same_clips):
    """Announced frames are those and no others; what is outside may be damaged or missing."""
    part = tmp_path / "part"
    part.mkdir()
    for number in range(3, 12):
        shutil.copy(folder / f"{number:05d}.jpg", part / f"{number - 2:05d}.jpg")
    rename(folder, template, 1)
    clip = scan_folder(folder, (3, 11))
    sizes = [(folder / template.format(number)).stat().st_size for number in range(3, 12)]
    assert (clip.defect, clip.frames, clip.source.first, clip.bytes) == (None, 9, 3, sum(sizes))
    (folder / template.format(1)).unlink()
    (folder / template.format(12)).write_bytes(b"")
    assert scan_folder(folder, (3, 11)) == clip
    assert_same_clips(read_pixels([clip]), read_pixels([scan_folder(part)]))


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ((1, 13), "missing frame 00013.jpg: the annotations say 1 to 13, 12 are there"),
        ((0, 11), "missing frame 00000.jpg: the annotations say 0 to 11, 11 are there"),
        ((1, 999999), "missing frame 00013.jpg: the annotations say 1 to 999999, 12 are there"),
        ((1, 0), "no frames, as the annotations say"),
        ((2, 3), "has 2 frames, expected at least 3"),
        ((1, 12), None),
    ],
)
def test_frames_that_are_not_as_announced(folder, frames, reason):
    assert scan_folder(folder, frames).defect == reason


def test_announced_frames_are_looked_at(folder):
    (folder / "00005.jpg").write_bytes(b"")
    assert scan_folder(folder, (5, 9)).defect == "frame 00005.jpg is empty"
    (folder / "00005.jpg").write_bytes(b"no picture")
    assert scan_folder(folder, (5, 9)).defect == "frame 00005.jpg is not a JPEG picture"
    assert scan_folder(folder, (6, 9)).defect is None
    (folder / "00005.jpg").unlink()
    assert scan_folder(folder, (3, 9)).defect == (
        "missing frame 00005.jpg: the annotations say 3 to 9, 6 are there"
    )


def test_a_video_has_no_numbered_frames(roots):
    video = read_dataset(roots["ssv2"], "train").samples[0].path
    clip = scan_folder(video, (1, 10))
    assert clip.defect == "is a file, expected a folder: the annotations number its frames"


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("template", TEMPLATES)
def test_gaps_and_empty_frames_are_named(folder, template, first):
    rename(folder, template, first)
    last = template.format(first + 11)
    (folder / last).write_bytes(b"")
    assert scan_folder(folder).defect == f"frame {last} is empty"
    (folder / template.format(5)).unlink()
    assert scan_folder(folder).defect == f"missing frame {template.format(5)}"


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ("img_00001.jpg", "frames are named in several ways: 00001.jpg and img_00001.jpg"),
        ("000013.jpg", "frames are named in several ways: 00001.jpg and 000013.jpg"),
        ("00014.jpg", "missing frame 00013.jpg"),
        ("img_1.jpg", None),
        ("0013.jpg", None),
        ("00013.png", None),
    ],
)
def test_one_more_file(folder, extra, reason):
    shutil.copy(folder / "00001.jpg", folder / extra)
    clip = scan_folder(folder)
    assert clip.defect == reason
    assert reason or clip.frames == 12


def test_neither_from_0_nor_from_1(folder):
    (folder / "00001.jpg").unlink()
    assert scan_folder(folder).defect == "missing frame 00001.jpg"


def test_no_frames(tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip/frame1.jpg").write_bytes(b"")
    clip = scan_folder(tmp_path / "clip")
    assert clip.defect == "no frames: a folder without 00001.jpg, 000001.jpg or img_00001.jpg"
    assert (clip.source, clip.frames) == (None, 0)
