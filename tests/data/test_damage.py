"""Bad clips among good ones: found by the scan or while decoding, named, and without effect on the others."""

import re
import resource
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from data.video_files import encode

from taf_fast.data import ClipLoader, DataError, Manifest, VideoDataset, read_ssv2, scan
from taf_fast.data.clip import Sample, Size


def audio_only(path: Path):
    with av.open(str(path), "w", format="webm") as output:
        stream = output.add_stream("libopus", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 48000
        output.mux(stream.encode(frame))
        output.mux(stream.encode())


def cut(path: Path, keep: float = 0.6):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def overwrite_end(path: Path, keep: float):
    """Random bytes of the same length: only decoding finds it."""
    data = path.read_bytes()
    start = int(len(data) * keep)
    path.write_bytes(data[:start] + np.random.bytes(len(data) - start))


BEFORE_SCAN = {
    "missing": (Path.unlink, "missing file"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "no frames: a folder without 00001.jpg"),
    "empty": (lambda path: path.write_bytes(b""), "empty file"),
    "random bytes": (
        lambda path: path.write_bytes(np.random.bytes(100)),
        "cannot be opened|no video stream|no frames",
    ),
    "truncated": (cut, r"truncated: \d+ of \d+ bytes"),
    "last byte missing": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "truncated"),
    "cut mp4": (
        lambda path: (encode(path, "libvpx-vp9", 20, "mp4"), cut(path)),
        r"truncated: \d+ of 20 frames",
    ),
    "zeros at the end": (
        lambda path: path.write_bytes(path.read_bytes()[:-2000] + bytes(2000)),
        r"damaged at byte \d+ of \d+",
    ),
    "header only": (
        lambda path: path.write_bytes(path.read_bytes()[:600]),
        "no frames|cannot be opened|truncated",
    ),
    "too short": (lambda path: encode(path, "libvpx-vp9", 2), "has 2 frames, expected at least 3"),
    "cut h264": (
        lambda path: (encode(path, "libx264", 20, "mp4"), cut(path)),
        r"truncated: \d+ of 20 frames",
    ),
    "no video": (audio_only, "no video stream"),
}
AFTER_SCAN = {
    "deleted": (Path.unlink, "missing file"),
    "truncated later": (cut, r"changed since the scan: \d+ bytes instead of \d+"),
    "all noise": (
        lambda path: overwrite_end(path, 0),
        "cannot be (opened|decoded)|no video stream|no frames",
    ),
    "half noise": (lambda path: overwrite_end(path, 0.3), "cannot be decoded"),
}


def damage(manifest: Manifest, kinds: dict, rng) -> dict[str, str]:
    """Does each kind of damage to a random clip; returns the expected reason by clip id."""
    chosen = rng.choice(len(manifest.clips), len(kinds), replace=False)
    for index, (action, _) in zip(chosen, kinds.values(), strict=True):
        action(manifest.clips[index].path)
    return {manifest.clips[i].id: reason for i, (_, reason) in zip(chosen, kinds.values(), strict=True)}


def assert_reasons(actual: dict[str, str], expected: dict[str, str]) -> None:
    assert actual.keys() == expected.keys()
    for name, pattern in expected.items():
        assert re.search(pattern, actual[name]), (pattern, actual[name])
        assert "\n" not in actual[name] and len(actual[name]) < 200


def loader(manifest, **options) -> ClipLoader:
    settings = {"num_segments": 8, "size": 32, "batch_size": 4, "train": False, "quarantine_limit": 0.9}
    return ClipLoader(manifest, **settings | options)


@pytest.mark.parametrize("train", [True, False])
def test_every_damage_is_named_and_the_good_clips_are_untouched(
    copied_root, clean, train, rng, seed, by_id, assert_same_clips, decoder
):
    dataset = read_ssv2(copied_root, "train")
    before = damage(scan(dataset), BEFORE_SCAN, rng)
    manifest = scan(dataset)
    assert_reasons(manifest.defects, before)
    later = damage(Manifest(manifest.classes, manifest.good), AFTER_SCAN, rng)

    expected = by_id(loader(clean, train=train, seed=seed, decoder=decoder))
    damaged = loader(manifest, train=train, seed=seed, batch_size=2, decoder=decoder)
    delivered = by_id(damaged)
    assert_reasons(damaged.quarantined, before | later)
    assert_same_clips(delivered, {name: expected[name] for name in expected if name not in before | later})
    # The next epoch leaves the bad clips out from the start and decodes the same ones.
    assert by_id(damaged).keys() == delivered.keys()


def test_codecs_of_the_manifest_decode(tmp_path, by_id, decoder):
    files = {"libvpx": "webm", "libvpx-vp9": "webm", "mjpeg": "avi"}
    for codec, container in files.items():
        encode(tmp_path / codec, codec, 12, container)
    samples = tuple(Sample(codec, tmp_path / codec, 0) for codec in files)
    manifest = scan(VideoDataset(tmp_path, "train", ("a",), samples, "ssv2"))
    assert [(clip.codec, clip.frames) for clip in manifest.clips] == [("vp8", 12), ("vp9", 12), ("mjpeg", 12)]
    assert by_id(loader(manifest, decoder=decoder)).keys() == files.keys()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"size": Size(72, 48)}, "has frames of 96 x 72 pixels, expected 48 x 72"),
        (
            {"size": Size(400, 400)},
            "has frames of 96 x 72 pixels, expected 400 x 400|Slice can't be placed out of bounds",
        ),
        ({"frames": 60}, r"\d\d frames come out, expected at least 57|Unexpected out-of-bounds frame index"),
    ],
)
def test_files_that_differ_from_the_manifest(clean, change, reason, by_id, assert_same_clips, decoder):
    expected = by_id(loader(clean, decoder=decoder))
    clips = list(clean.clips)
    clips[5] = replace(clips[5], **change)
    wrong = loader(Manifest(clean.classes, tuple(clips)), decoder=decoder)
    delivered = by_id(wrong)
    assert_reasons(wrong.quarantined, {clips[5].id: reason})
    del expected[clips[5].id]
    assert_same_clips(delivered, expected)


def test_a_file_replaced_by_another_codec_of_equal_size(copied_root, by_id, decoder):
    manifest = scan(read_ssv2(copied_root, "train"))
    clip = manifest.clips[3]
    encode(clip.path, "libx264", 12, "mp4", (32, 32))
    data = clip.path.read_bytes()
    clip.path.write_bytes(data[: clip.bytes] + bytes(max(0, clip.bytes - len(data))))
    bad = loader(manifest, decoder=decoder)
    by_id(bad)
    assert_reasons(bad.quarantined, {clip.id: "cannot be|has frames of 32 x 32 pixels"})


def test_evaluation_skips_a_batch_without_a_good_clip(copied_root):
    manifest = scan(read_ssv2(copied_root, "train"))
    for clip in manifest.clips[4:8]:
        clip.path.unlink()
    bad = loader(manifest)
    assert len(bad) == 6
    assert [len(batch.ids) for batch in bad] == [4] * 5
    assert (bad.epoch, bad.iteration) == (1, 0)


@pytest.mark.parametrize("step", [0, 2])
def test_ranks_train_equally_many_steps_whatever_is_bad(copied_root, clean, seed, step, by_id):
    """In a batch without a good clip comes the next good one of its rank, in this and in later epochs."""
    manifest = scan(read_ssv2(copied_root, "train"))
    options = {"train": True, "seed": seed, "batch_size": 4, "world_size": 2}
    expected = [[batch.ids for batch in loader(clean, **options, rank=rank)] for rank in (0, 1)]
    assert [len(batches) for batches in expected] == [3, 3]
    following = expected[1][(step + 1) % 3]
    bad = {*expected[1][step], following[0]}
    for clip in manifest.clips:
        if clip.id in bad:
            clip.path.unlink()
    ranks = [loader(manifest, **options, rank=rank) for rank in (0, 1)]
    first, second = ([batch.ids for batch in rank] for rank in ranks)
    assert first == expected[0]
    assert second[step] == [following[1]] and second[(step + 1) % 3] == following[1:]
    assert ranks[1].quarantined.keys() == bad
    for rank in ranks:
        again = [batch.ids for batch in rank]
        assert (
            len(again) == 3
            and all(again)
            and not bad & {name for ids in again for name in ids} - (bad if rank is ranks[0] else set())
        )


def test_a_rank_without_any_good_clip_takes_the_other_ranks(copied_root, clean, seed):
    options = {"train": True, "seed": seed, "batch_size": 4, "world_size": 2}
    mine = {name for batch in loader(clean, **options, rank=1) for name in batch.ids}
    manifest = scan(read_ssv2(copied_root, "train"))
    for clip in manifest.clips:
        if clip.id in mine:
            clip.path.unlink()
    delivered = [batch.ids for batch in loader(manifest, **options, rank=1)]
    assert len(delivered) == 3 and all(len(ids) == 1 and not mine & set(ids) for ids in delivered)


def test_too_many_bad_clips_stop_the_run_with_the_list(copied_root):
    dataset = read_ssv2(copied_root, "train")
    healthy = scan(dataset)
    contents = {clip.id: clip.path.read_bytes() for clip in healthy.clips[:12]}
    for clip in healthy.clips[:12]:
        clip.path.unlink()
    with pytest.raises(DataError, match=r"12 of 24 clips are bad, more than the limit of 10%") as error:
        loader(scan(dataset), quarantine_limit=0.1)
    assert str(error.value).count(": missing file") == 10 and "and 2 more" in str(error.value)

    running = loader(healthy, quarantine_limit=0.1)
    with pytest.raises(DataError, match="4 of 24 clips are bad") as error:
        list(running)
    assert all(f"{clip.id}: missing file" in str(error.value) for clip in healthy.clips[:4])
    # The batch was not delivered and its clips are not given up: once they are back, the loop goes on.
    assert running.iteration == 0 and not running.quarantined
    with pytest.raises(DataError, match="4 of 24"):
        list(running)
    for clip in healthy.clips[:12]:
        clip.path.write_bytes(contents[clip.id])
    assert len(list(running)) == 6
    for clip in healthy.clips[:12]:
        clip.path.unlink()
    assert len(list(loader(scan(dataset), quarantine_limit=0.5))) == 3


def test_no_good_clip_at_all(copied_root):
    dataset = read_ssv2(copied_root, "validation")
    healthy = scan(dataset)
    for clip in healthy.clips:
        clip.path.unlink()
    with pytest.raises(DataError, match="16 of 16 clips are bad, no good clip"):
        loader(scan(dataset), quarantine_limit=1)
    with pytest.raises(DataError, match="16 of 16 clips are bad, no good clip"):
        list(loader(healthy, quarantine_limit=1))
    with pytest.raises(DataError, match="there are no clips for"):
        loader(Manifest(("a",), ()))


@pytest.mark.slow
def test_errors_grow_no_memory(copied_root, decoder):
    """Two thousand clips that cannot be decoded, through one loader."""
    manifest = scan(read_ssv2(copied_root, "validation"))
    for clip in manifest.clips[1:]:
        overwrite_end(clip.path, 0.2)
    failing = loader(manifest, size=112, decoder=decoder, quarantine_limit=1)
    start = failing.state_dict()

    def fail() -> float:
        """MiB in use after 150 errors."""
        for _ in range(10):
            failing.load_state_dict(start)
            assert [len(batch.ids) for batch in failing] == [1]
        assert len(failing.quarantined) == 15
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

    used = [fail() for _ in range(14)]
    # Allocators take some time to settle. Keeping a batch per request would cost 1.2 MiB each, 470 in total.
    assert used[-1] - used[3] < 60


def test_real_corrupted_file(real_clip, clean, tmp_path, by_id, decoder):
    samples = (Sample("bad", real_clip("corrupted.mp4"), 0), Sample("good", clean.clips[0].path, 0))
    dataset = VideoDataset(tmp_path, "train", ("a",), samples, "ssv2")
    assert_reasons(scan(dataset).defects, {"bad": "cannot be decoded: Invalid data"})
    manifest = scan(dataset, quick=True)
    assert not manifest.defects
    damaged = loader(manifest, decoder=decoder)
    assert by_id(damaged).keys() == {"good"}
    assert_reasons(damaged.quarantined, {"bad": "cannot be decoded: Invalid data"})
