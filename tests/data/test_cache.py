"""The decoded cache: written, interrupted and read back."""

import errno
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from data.video_files import decode
from PIL import Image

from taf_fast.data import ClipLoader, DataError, VideoDataset, read_dataset, scan
from taf_fast.data.cache.read import INDEX, read_cache
from taf_fast.data.cache.write import write_cache
from taf_fast.data.clip import Sample
from taf_fast.data.synth import write
from taf_fast.errors import FileError

SPLITS = ("train", "validation")
TESTS = Path(__file__).parents[1]


def scanned(root):
    datasets = [read_dataset(root, split) for split in SPLITS]
    return [(dataset, scan(dataset).clips) for dataset in datasets]


def cached(root, folder, workers=1):
    return list(write_cache(folder, scanned(root), workers))


def pictures(clip) -> list[Image.Image]:
    """Read the pictures that the index lists from the pack, with PIL."""
    content = clip.path.read_bytes()
    places = zip(clip.source.offsets[:-1], clip.source.offsets[1:], strict=True)
    return [Image.open(io.BytesIO(content[start:end])) for start, end in places]


def through_jpeg(frame: np.ndarray) -> np.ndarray:
    content = io.BytesIO()
    Image.fromarray(frame).save(content, "JPEG", quality=95)
    return np.asarray(Image.open(content))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ssv1", "ssv2", "diving48"])
def test_a_cache_is_the_data_set(roots, tmp_path, name):
    done = cached(roots[name], tmp_path / "cache", workers=2)
    assert len(done) == 40 and all(clip.defect is None for clip in done)
    for split in SPLITS:
        original, cache = (read_dataset(root, split) for root in (roots[name], tmp_path / "cache"))
        assert (cache.name, cache.classes, cache.split) == (original.name, original.classes, split)
        clips = {clip.id: clip for clip in scan(cache).clips}
        assert {name: clip.label for name, clip in clips.items()} == {s.id: s.label for s in original.samples}
        for sample in original.samples:
            frames, clip = decode(sample.path), clips[sample.id]
            assert (clip.frames, *clip.size) == frames.shape[:3]
            for picture, frame in zip(pictures(clip), frames, strict=True):
                expected = frame if name == "ssv1" else through_jpeg(frame)
                assert np.array_equal(np.asarray(picture), expected)


@pytest.mark.slow
def test_jpeg_frames_are_taken_over_byte_for_byte_and_delivered_alike(
    roots, tmp_path, rng, seed, by_id, assert_same_clips, decoder
):
    cached(roots["ssv1"], tmp_path / "cache", workers=2)
    # Processes get done in any order.
    header, *lines, end = (tmp_path / "cache" / INDEX).read_text().splitlines()
    (tmp_path / "cache" / INDEX).write_text("\n".join([header, *rng.permutation(lines), end]))
    manifests = [scan(read_dataset(root, "train")) for root in (roots["ssv1"], tmp_path / "cache")]
    for clip, original in zip(manifests[1].clips, manifests[0].clips, strict=True):
        assert clip.id == original.id
        content = clip.path.read_bytes()[clip.source.offsets[0] : clip.source.offsets[-1]]
        assert content == b"".join(file.read_bytes() for file in sorted(original.path.iterdir()))
    delivered = [by_id(ClipLoader(m, 8, 48, 6, train=True, seed=seed, decoder=decoder)) for m in manifests]
    assert_same_clips(*delivered)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(600, 400), (400, 600), (256, 300), (200, 300)])
def test_the_short_side_becomes_256(tmp_path, size):
    write(tmp_path / "data", 1, 1, size, (4, 5), format="diving48")
    paths = {s.id: s.path for split in SPLITS for s in read_dataset(tmp_path / "data", split).samples}
    for clip in cached(tmp_path / "data", tmp_path / "cache"):
        scale = min(1, 256 / min(size))
        assert clip.size == tuple(round(side * scale) for side in reversed(size))
        for picture, frame in zip(pictures(clip), decode(paths[clip.id]), strict=True):
            expected = Image.fromarray(frame).resize(picture.size, Image.BILINEAR)
            assert np.array_equal(np.asarray(picture), through_jpeg(np.asarray(expected)))


@pytest.mark.slow
def test_quality_and_size_on_camera_footage(real_clip, tmp_path):
    """Off by a level on average, in frames of 27 KiB."""
    path = real_clip("arm_wrestling_h264.mp4")
    dataset = VideoDataset(path.parent, "train", ("a",), (Sample("1", path, 0),), "folders")
    (clip,) = write_cache(tmp_path, [(dataset, scan(dataset).clips)], 1)
    errors = [
        abs(np.asarray(p).astype(float) - f).mean() for p, f in zip(pictures(clip), decode(path), strict=True)
    ]
    assert 0.5 < np.mean(errors) < 1.5 and 20 < clip.bytes / clip.frames / 1024 < 32


def test_a_full_disk_is_named_and_gone_on_from(roots, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for step in ("write_atomically", "_Packs.append"):  # the file of labels has been written
        with monkeypatch.context() as patched:
            patched.setattr(f"taf_fast.data.cache.write.{step}", full)
            with pytest.raises(DataError, match="cache cannot be written: No space left on device"):
                cached(roots["ssv1"], tmp_path / "cache")
        (tmp_path / "cache" / ".taf_fast-01234567-0.tmp").mkdir()  # as a kill leaves it
    assert len(cached(roots["ssv1"], tmp_path / "cache")) == 40


@pytest.mark.slow
def test_clips_that_cannot_be_decoded_are_in_the_cache_with_their_defect(copied_root, tmp_path, by_id):
    splits = scanned(copied_root)
    missing, damaged = splits[0][1][:2]
    missing.path.unlink()
    content = bytearray(damaged.path.read_bytes())
    content[len(content) // 2 :] = np.random.bytes(len(content) - len(content) // 2)
    damaged.path.write_bytes(content)
    list(write_cache(tmp_path / "cache", splits, 2))
    manifest = scan(read_dataset(tmp_path / "cache", "train"))
    assert manifest.defects.keys() == {missing.id, damaged.id}
    assert "cannot be opened" in manifest.defects[missing.id]
    assert len(by_id(ClipLoader(manifest, 8, 32, 4, train=False))) == 22


@pytest.mark.slow
def test_a_killed_writer_is_gone_on_with(tmp_path, roots):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = {clip.id: b"".join(map(_bytes, pictures(clip))) for clip in cached(roots["diving48"], whole)}
    code = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r}); from data.test_cache import cached;"
        "cached(sys.argv[1], sys.argv[2], 2)"
    )
    for wanted in (5, 20):
        process = subprocess.Popen([sys.executable, "-c", code, roots["diving48"], killed])
        while process.poll() is None and _lines(killed) < wanted:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        begun = _lines(killed)
        with pytest.raises(DataError, match="is an unfinished cache"):
            read_cache(killed, "train")
    # A kill in the middle of writing leaves pictures without a line, and half a line.
    with (killed / "frames-00000.jpegs").open("ab") as pack:
        pack.write(b"no line tells of these")
    with (killed / INDEX).open("ab") as index:
        index.write(b'{"split": "tra')
    assert len(cached(roots["diving48"], killed, 2)) == 40 + 1 - begun
    clips = [clip for split in SPLITS for clip in scan(read_dataset(killed, split)).clips]
    assert {clip.id: b"".join(map(_bytes, pictures(clip))) for clip in clips} == expected
    assert cached(roots["diving48"], killed) == []


def _lines(folder) -> int:
    return (folder / INDEX).read_bytes().count(b"\n") if (folder / INDEX).exists() else 0


def _bytes(picture: Image.Image) -> bytes:
    return picture.fp.getvalue()


@pytest.mark.slow
def test_other_folders_and_other_data_are_refused(roots, copied_root, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("")
    for name in ("pipe", "file"):
        with pytest.raises(FileError, match=f"{name} cannot be made: File exists"):
            list(write_cache(tmp_path / name, [], 1))
    with pytest.raises(DataError, match="full is not empty, expected a new folder or a cache"):
        cached(roots["ssv2"], tmp_path / "full")
    cached(roots["ssv2"], tmp_path / "cache")
    with pytest.raises(DataError, match="cache is the cache of other data: clip"):
        cached(roots["diving48"], tmp_path / "cache")
    opened = os.open(tmp_path / "cache", os.O_RDONLY)
    fcntl.flock(opened, fcntl.LOCK_EX)
    with pytest.raises(DataError, match="cache is being written by another taf-fast scan"):
        cached(roots["ssv2"], tmp_path / "cache")
    os.close(opened)


@pytest.mark.parametrize("workers", [1, 2])
def test_damaged_caches_are_refused(roots, tmp_path, workers):
    cached(roots["ssv1"], tmp_path, workers)
    pack, index = tmp_path / "frames-00000.jpegs", tmp_path / INDEX
    lines, content = index.read_text().splitlines(), pack.read_bytes()
    assert json.loads(lines[-1]) == {"end": True}
    pack.write_bytes(content[:-1])
    with pytest.raises(DataError, match=rf"truncated: {len(content) - 1} of at least {len(content)} bytes"):
        [read_cache(tmp_path, split) for split in SPLITS]
    pack.unlink()
    with pytest.raises(DataError, match="truncated: 0 of"):
        read_cache(tmp_path, "train")
    pack.write_bytes(content)
    read_cache(tmp_path, "train")
    index.write_text("\n".join([lines[0], "{", *lines[2:]]))
    with pytest.raises(DataError, match="line 2 is damaged"):
        read_cache(tmp_path, "train")
    index.write_text("\n".join(lines).replace('"taf_fast_cache": 1', '"taf_fast_cache": 2'))
    with pytest.raises(DataError, match="not the index of a cache of version 1"):
        read_cache(tmp_path, "train")


def test_packs_are_of_limited_size(roots, tmp_path, monkeypatch, by_id):
    monkeypatch.setattr("taf_fast.data.cache.write.PACK_BYTES", 100_000)
    done = cached(roots["ssv1"], tmp_path)
    packs = {clip.path for clip in done}
    assert len(packs) > 2 and all(pack.stat().st_size < 400_000 for pack in packs)
    clips = by_id(ClipLoader(scan(read_dataset(tmp_path, "train")), 8, 32, 4, train=False))
    plain = by_id(ClipLoader(scan(read_dataset(roots["ssv1"], "train")), 8, 32, 4, train=False))
    assert all(torch.equal(clips[name], plain[name]) for name in plain)


@pytest.mark.parametrize(
    "line",
    [
        *([], 3, {}, {"split": "train"}),
        {"label": 99},
        {"label": -1},
        {"label": None},
        {"position": "first"},
        {"id": 3},
        {"sizes": 5},
        {"sizes": [1, None]},
        {"start": 10**30},
        {"width": "wide"},
        {"checksum": True},
    ],
    ids=str,
)
def test_edited_lines_are_refused(tmp_path, line):
    """Another line of the index than a cache's writer could have written."""
    good = {"split": "train", "id": "a", "label": 0, "position": 0, "source": 1, "pack": 0, "start": 0}
    good |= {"sizes": [2], "width": 4, "height": 4, "checksum": 0}
    header = {"taf_fast_cache": 1, "dataset": "ssv2", "classes": ["x", "y"]}
    (tmp_path / "frames-00000.jpegs").write_bytes(b"ab")

    def written(second) -> Path:
        lines = [header, second, {"end": True}]
        (tmp_path / INDEX).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return tmp_path

    assert len(read_cache(written(good), "train").samples) == 1
    whole = good | line if isinstance(line, dict) and len(line) == 1 and "split" not in line else line
    with pytest.raises(DataError, match=f"{INDEX}: line 2 is damaged"):
        read_cache(written(whole), "train")
