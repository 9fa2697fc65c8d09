"""Damaged folders of frames and damaged videos that PyAV decodes, among good clips of every format."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from data.video_files import decode, encode
from PIL import Image

from taf_fast.data import ClipLoader, DataError, Manifest, VideoDataset, scan
from taf_fast.data.clip import Box, Clip, Sample, Size, VideoFile
from taf_fast.data.decoding.pyav import decode_video_crops


def frame(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.jpg"


def every_frame(change):
    """Apply ``change`` to all frames of a folder, because the choice of frames is random."""
    return lambda folder: [change(file) for file in folder.iterdir()]


def cut(path: Path):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])


def noise_from(path: Path, keep: float):
    data = path.read_bytes()
    start = int(len(data) * keep)
    path.write_bytes(data[:start] + np.random.bytes(len(data) - start))


def zeros_at_the_end(path: Path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2].ljust(len(data), b"\0"))


def other_size(file: Path):
    image = np.asarray(Image.open(file))
    Image.fromarray(image[:, :-8]).save(file)


FRAMES_BEFORE = {
    "missing": (shutil.rmtree, "missing file"),
    "no frames": (every_frame(Path.unlink), "no frames: a folder without 00001.jpg"),
    "a gap": (lambda f: frame(f, 4).unlink(), "missing frame 00004.jpg"),
    "a gap behind 0": (lambda f: frame(f, 1).rename(frame(f, 0)), "missing frame 00001.jpg"),
    "an empty frame": (lambda f: frame(f, 7).write_bytes(b""), "frame 00007.jpg is empty"),
    "no picture": (
        lambda f: frame(f, 1).write_bytes(np.random.bytes(200)),
        "00001.jpg is not a JPEG picture",
    ),
    "too short": (
        lambda f: [frame(f, n).unlink() for n in range(3, 31) if frame(f, n).exists()],
        "has 2 frames, expected at least 3",
    ),
}
FRAMES_AFTER = {
    "deleted": (shutil.rmtree, r"missing frame 000\d\d.jpg"),
    "emptied": (every_frame(lambda file: file.write_bytes(b"")), r"frame 000\d\d.jpg is not a JPEG picture"),
    "cut": (every_frame(cut), r"frame 000\d\d.jpg cannot be decoded: image file is truncated"),
    "noise": (
        every_frame(lambda file: noise_from(file, 0)),
        r"frame 000\d\d.jpg is not a JPEG picture",
    ),
    "other size": (every_frame(other_size), "has frames of 88 x 72 pixels, expected 96 x 72"),
}
VIDEO_BEFORE = {
    "missing": (Path.unlink, "missing file"),
    "empty": (lambda path: path.write_bytes(b""), "empty file"),
    "cut": (cut, "cannot be opened"),  # the index is at the end
    "cut with the index": (
        lambda path: (encode(path, "libx264", 20, "mp4"), cut(path)),
        r"truncated: \d+ of 20 frames",
    ),
    "random": (
        lambda path: path.write_bytes(np.random.bytes(500)),
        "cannot be opened|no video stream|no frames",
    ),
    "first frame": (
        lambda path: (encode(path, "libx264", 20, "mp4"), noise_from_first_frame(path)),
        "cannot be decoded",
    ),
    "too short": (lambda path: encode(path, "libx264", 2, "mp4"), "has 2 frames, expected at least 3"),
}
VIDEO_AFTER = {
    "deleted": (Path.unlink, "missing file"),
    "cut": (cut, r"changed since the scan: \d+ bytes instead of \d+"),
    "zeros": (zeros_at_the_end, "cannot be (opened|decoded)"),
    "noise": (lambda path: noise_from(path, 0), "cannot be (opened|decoded)|no video stream|no frames"),
}


def noise_from_first_frame(path: Path):
    """Random bytes from the beginning of the pictures, behind an index that stays."""
    start = path.read_bytes().index(b"mdat") + 8
    noise_from(path, start / path.stat().st_size)


def damage(manifest: Manifest, name: str, kinds: dict) -> dict[str, str]:
    """Damages clips of one format, each in one way; returns the expected reason by clip id."""
    clips = [clip for clip in manifest.clips if clip.id.startswith(name) and clip.defect is None]
    reasons = {}
    for clip, (action, reason) in zip(clips, kinds.values(), strict=False):
        action(clip.path)
        reasons[clip.id] = reason
    assert len(reasons) == len(kinds)
    return reasons


def rescan(manifest: Manifest) -> Manifest:
    samples = tuple(Sample(clip.id, clip.path, clip.label) for clip in manifest.clips)
    return scan(VideoDataset(Path(), "train", manifest.classes, samples, "ssv2"))


def assert_reasons(actual: dict[str, str], expected: dict[str, str]) -> None:
    assert actual.keys() == expected.keys()
    for name, pattern in expected.items():
        assert re.search(pattern, actual[name]), (pattern, actual[name])
        assert "\n" not in actual[name] and len(actual[name]) < 200


def loader(manifest, **options) -> ClipLoader:
    settings = {"num_segments": 8, "size": 32, "batch_size": 4, "train": False, "quarantine_limit": 0.9}
    return ClipLoader(manifest, **settings | options)


def test_the_scan_names_what_is_wrong(copied_mixed, mixed, seed, by_id, assert_same_clips):
    before = damage(copied_mixed, "ssv1", FRAMES_BEFORE) | damage(copied_mixed, "diving48", VIDEO_BEFORE)
    manifest = rescan(copied_mixed)
    assert_reasons(manifest.defects, before)
    expected = by_id(loader(mixed, train=True, seed=seed))
    delivered = by_id(loader(manifest, train=True, seed=seed, batch_size=2))
    assert_same_clips(delivered, {name: clip for name, clip in expected.items() if name not in before})


@pytest.mark.parametrize("train", [True, False])
def test_what_the_scan_did_not_see_is_quarantined(copied_mixed, mixed, train, seed, by_id, assert_same_clips):
    later = damage(copied_mixed, "ssv1", FRAMES_AFTER) | damage(copied_mixed, "diving48", VIDEO_AFTER)
    damaged = loader(copied_mixed, train=train, seed=seed)
    delivered = by_id(damaged)
    assert_reasons(damaged.quarantined, later)
    expected = by_id(loader(mixed, train=train, seed=seed))
    assert_same_clips(delivered, {name: clip for name, clip in expected.items() if name not in later})
    assert by_id(damaged).keys() == delivered.keys()


def test_one_bad_frame_among_good_ones_is_named(copied_mixed):
    clip = next(clip for clip in copied_mixed.clips if clip.id.startswith("ssv1"))
    wanted = centres(clip.frames)[3]
    cut(frame(clip.path, wanted))
    running = loader(copied_mixed)
    list(running)
    reason = running.quarantined[clip.id]
    assert reason.startswith(f"frame {wanted:05d}.jpg cannot be decoded: image file is truncated")
    # A frame that is not taken does not matter.
    unwanted = next(n for n in range(1, 30) if n not in centres(clip.frames))
    frame(clip.path, wanted).write_bytes(frame(clip.path, wanted + 1).read_bytes())
    frame(clip.path, unwanted).unlink()
    again = loader(copied_mixed)
    assert sum(len(batch.ids) for batch in again) == 24 and not again.quarantined


def centres(frames: int) -> list[int]:
    """The numbers of the frames that evaluation takes."""
    return [int(frames / 8 / 2 + frames / 8 * i) + 1 for i in range(8)]


@pytest.mark.parametrize("kind", ["ssv1", "diving48"])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"size": Size(40, 48)}, "has frames of 96 x 72 pixels, expected 48 x 40"),
        ({"size": Size(400, 400)}, "cannot be decoded|has frames of 96 x 72 pixels, expected 400 x 400"),
        ({"frames": 60}, r"missing frame 000\d\d.jpg|\d\d frames come out, expected at least 57"),
    ],
)
def test_clips_that_differ_from_the_manifest(mixed, kind, change, reason, by_id):
    clips = list(mixed.clips)
    index = next(i for i, clip in enumerate(clips) if clip.id.startswith(kind))
    clips[index] = replace(clips[index], **change)
    wrong = loader(Manifest(mixed.classes, tuple(clips)))
    assert len(by_id(wrong)) == 23
    assert_reasons(wrong.quarantined, {clips[index].id: reason})


def crops(path: Path, frames: np.ndarray, height: int = 72, width: int = 96) -> np.ndarray:
    """Whole frames of a video."""
    source, size = VideoFile("mpeg4"), Size(height, width)
    return decode_video_crops(Clip("1", path, 0, source, size=size), source, frames, Box(0, 0, *size))


def write_with_a_lost_frame(path: Path, lost: int):
    """MPEG-4 in which one packet is replaced by a picture that is not coded: decoders skip it silently."""
    images = np.random.default_rng(0).integers(0, 256, (16, 48, 64, 3), dtype=np.uint8)
    with av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=12, options={"g": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        packets = [
            packet
            for image in [*(av.VideoFrame.from_ndarray(i, format="rgb24") for i in images), None]
            for packet in stream.encode(image)
        ]
        for index, packet in enumerate(packets):
            if index == lost:
                empty = av.Packet(b"\x00\x00\x01\xb6\x53\xbf")
                empty.pts, empty.dts = packet.pts, packet.dts
                empty.time_base, empty.stream = packet.time_base, stream
                packet = empty
            output.mux(packet)


def test_frames_are_those_that_the_decoder_shows(tmp_path):
    """A packet without a picture is no frame."""
    write_with_a_lost_frame(tmp_path / "bad.mp4", lost=5)
    expected = decode(tmp_path / "bad.mp4")
    (clip,) = rescan(Manifest(("a",), (Sample("1", tmp_path / "bad.mp4", 0),))).clips
    assert len(expected) == clip.frames == 15 and clip.decoded and not clip.source.regular
    assert np.array_equal(crops(clip.path, np.arange(15), 48, 64), expected)
    with pytest.raises(DataError, match="cannot be decoded: 15 frames come out, expected at least 16"):
        crops(clip.path, np.array([3, 15]), 48, 64)


def test_decoding_stops_at_the_last_wanted_frame(tmp_path):
    """Damage behind it is not seen."""
    encode(tmp_path / "video", "mpeg4", 40, "mp4")
    noise_from(tmp_path / "video", 0.7)
    assert len(crops(tmp_path / "video", np.arange(8))) == 8
    with pytest.raises(DataError, match="cannot be decoded"):
        crops(tmp_path / "video", np.array([38]))


@pytest.mark.parametrize(
    ("rotation", "mirror", "reason"),
    [
        (45, False, "is rotated by 45 degrees, expected a multiple of 90"),
        (0, True, "is to be shown mirrored"),
        (90, True, "is to be shown mirrored"),
    ],
)
def test_other_orientations_are_a_defect(tmp_path, rotation, mirror, reason):
    encode(tmp_path / "video", "libx264", 12, "mp4", rotation=rotation, mirror=mirror)
    manifest = rescan(Manifest(("a",), (Sample("1", tmp_path / "video", 0),)))
    assert_reasons(manifest.defects, {"1": reason})


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg4"])
def test_damaged_videos_are_noticed_or_right_in_size(tmp_path, codec, rng):
    """Holes anywhere raise DataError or leave the announced number of frames. Most are noticed."""
    if codec not in av.codecs_available:
        pytest.skip(f"FFmpeg was built without {codec}")
    encode(tmp_path / "good", codec, 30, "mp4")
    data = (tmp_path / "good").read_bytes()
    start = data.index(b"mdat") + 8
    noticed = 0
    for _ in range(20):
        at = int(rng.integers(start, len(data) - 400))
        (tmp_path / "bad").write_bytes(data[:at] + bytes(300) + data[at + 300 :])
        try:
            assert crops(tmp_path / "bad", np.arange(30)).shape == (30, 72, 96, 3)
        except DataError as error:
            assert str(error).startswith("cannot be decoded") or "frames, expected" in str(error)
            noticed += 1
    assert noticed >= 10


@pytest.mark.slow
def test_a_damaged_jpeg_is_never_delivered_black(copied_mixed, by_id):
    """Cut at any place, a frame is refused."""
    clip = next(clip for clip in copied_mixed.clips if clip.id.startswith("ssv1"))
    wanted = frame(clip.path, centres(clip.frames)[2])
    data = wanted.read_bytes()
    for keep in np.linspace(1, len(data) - 3, 25).astype(int).tolist():
        wanted.write_bytes(data[:keep])
        running = loader(Manifest(copied_mixed.classes, (clip, copied_mixed.clips[0])))
        assert by_id(running).keys() == {copied_mixed.clips[0].id}
        assert wanted.name in running.quarantined[clip.id]


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3, 24])
def test_errors_of_every_kind_share_a_batch_with_good_clips(copied_mixed, batch_size, by_id):
    # Batches of 3 hold a clip of every format: each is the bad one once.
    for index, name in enumerate(("ssv1", "ssv2", "diving48")):
        clip = [clip for clip in copied_mixed.clips if clip.id.startswith(name)][index]
        for file in clip.path.iterdir() if clip.path.is_dir() else [clip.path]:
            noise_from(file, 0)
    running = loader(copied_mixed, batch_size=batch_size)
    assert len(by_id(running)) == 21 and len(running.quarantined) == 3
