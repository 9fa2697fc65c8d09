"""Videos of every codec and container, and whatever makes frames hard to count: exact or refused.

The reference is a plain decode of the whole file by PyAV, with frames counted in the order they come.
"""

import io

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from data.odd_files import CODECS, Case, add_an_empty_sample, cases, of_two_codecs, turn, write
from PIL import Image

from taf_fast.data import ClipLoader, Manifest, VideoDataset, scan
from taf_fast.data.cache.write import write_cache
from taf_fast.data.clip import Box, Clip, Sample
from taf_fast.data.decoding.dali import VIDEO, DaliFetcher, kind
from taf_fast.data.decoding.fetch import ClipFetcher
from taf_fast.data.scanning.h264 import has_whole_frames
from taf_fast.data.views.planner import ClipPlan

BT601 = {"src_colorspace": 5, "dst_colorspace": 5, "dst_color_range": 2}
# What may be left out: cut files, and references that an edit list hides.
QUARANTINED = ("-cut", "hevc-mp4-edit_two_parts", "hevc-mov-edit_two_parts")
# Combinations that have to be tried, and those of them that have to be exact.
TRIED, EXACT = 519, 465


def plain_decode(path, stream: int = 0) -> list[np.ndarray]:
    reformatter, frames = VideoReformatter(), []
    with av.open(str(path)) as container:
        for frame in container.decode(container.streams.video[stream]):
            picture = reformatter.reformat(frame, format="rgb24", interpolation=0x42002, **BT601)
            frames.append(np.rot90(picture.to_ndarray(), frame.rotation // 90))
    return frames


def scan_one(path, quick: bool = False) -> Clip:
    return scan(
        VideoDataset(path.parent, "train", ("a",), (Sample("1", path, 0),), "list"), quick=quick
    ).clips[0]


def assert_exact(clip: Clip, expected: list[np.ndarray], rng) -> None:
    """Random sets of frames, as each decoder delivers them."""
    side = min(clip.size)
    box = Box(0, 0, side, side)
    for fetcher in (ClipFetcher(side, 1), DaliFetcher([clip], side, 1, 1)):
        for count in (1, 3, 8, 30):
            wanted = rng.integers(0, clip.frames, count).astype(np.int32)
            fetched = fetcher.submit([clip], [ClipPlan(wanted, box, 0)]).result()
            assert not fetched.failures
            delivered = fetched.clips[0].numpy()
            for index, frame in zip(wanted.tolist(), delivered, strict=True):
                assert np.array_equal(frame, expected[index][:side, :side]), index


def cases_of(codec: str) -> list[Case]:
    return [case for case in cases() if case.codec == codec]


@pytest.mark.slow
@pytest.mark.parametrize("codec", CODECS)
def test_frames_are_those_of_a_plain_decode(tmp_path, codec, rng):
    if CODECS[codec][0] not in av.codecs_available:
        pytest.skip(f"FFmpeg was built without {CODECS[codec][0]}")
    regular, by_dali = 0, 0
    for case in cases_of(codec):
        path = tmp_path / f"{case}.{case.container}"
        case.write(path)
        for quick in (False, True):
            clip = scan_one(path, quick)
            if clip.defect is not None:
                assert str(case).endswith(QUARANTINED), (str(case), clip.defect)
                continue
            expected = plain_decode(path, case.stream)
            assert clip.frames == len(expected), str(case)
            assert_exact(clip, expected, rng)
            regular += clip.source.regular
            by_dali += kind(clip, on_gpu=False) == VIDEO
    # Ordinary files are decoded the fast way.
    assert regular >= 4
    assert (by_dali > 4) == (codec in ("vp8", "vp9", "mjpeg"))


def test_combinations_are_many():
    names = [str(case) for case in cases()]
    assert len(names) == len(set(names)) >= TRIED
    assert sum(not name.endswith(QUARANTINED) for name in names) >= EXACT


@pytest.mark.parametrize(
    "name",
    ["h264-mkv-equal_times", "h264-ts-joined", "h264-avi-b_frames", "vp9-webm-rotated", "h264-mp4-edit_both"],
)
def test_caches_and_loaders_have_these_frames_too(tmp_path, name, seed):
    case = next(case for case in cases() if str(case) == name)
    path = tmp_path / name
    case.write(path)
    expected = plain_decode(path, 0)
    clip = scan_one(path)
    dataset = VideoDataset(tmp_path, "train", ("a",), (Sample("1", path, 0),), "list")
    (cached,) = write_cache(tmp_path / "cache", [(dataset, [clip])], 1)
    assert cached.frames == len(expected)
    content = cached.path.read_bytes()
    for start, end, frame in zip(
        cached.source.offsets[:-1], cached.source.offsets[1:], expected, strict=True
    ):
        picture = io.BytesIO()
        Image.fromarray(frame).save(picture, "JPEG", quality=95)
        assert content[start:end] == picture.getvalue()
    for train in (True, False):
        loaders = [
            ClipLoader(Manifest(("a",), (clip,)), 8, 32, 1, train, seed, decoder=decoder)
            for decoder in ("pyav", "dali")
        ]
        (first,), (second,) = loaders
        assert not loaders[0].quarantined and not loaders[1].quarantined
        # Each resizes in its own way.
        assert abs(first.clips.int() - second.clips.int()).float().mean() < 3


def test_a_stream_that_changes_its_size_is_left_out(tmp_path):
    """A plan's crop belongs to one size."""
    for name, size in (("wide", (64, 48)), ("tall", (48, 64))):
        write(tmp_path / name, "vp9", "ivf", size)
    header = 32
    content = (tmp_path / "wide").read_bytes() + (tmp_path / "tall").read_bytes()[header:]
    (tmp_path / "both.ivf").write_bytes(content)
    assert scan_one(tmp_path / "both.ivf").defect == "has frames of 48 x 64 pixels, expected 64 x 48"


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_a_stream_of_pictures_is_a_cover_only_if_it_has_one(tmp_path, container, rng):
    path = tmp_path / f"video.{container}"
    of_two_codecs(path, ("mjpeg", "h264"), container)
    for quick in (False, True):
        clip = scan_one(path, quick)
        assert clip.codec == "mjpeg"
        assert_exact(clip, plain_decode(path), rng)


@pytest.mark.parametrize("codec", ["mjpeg", "mpeg4", "hevc"])
def test_samples_without_data_are_no_frames(tmp_path, codec, rng):
    """A plain decode fails there."""
    path = tmp_path / "video.mp4"
    write(path, codec, "mp4")
    expected = plain_decode(path)
    add_an_empty_sample(path)
    for quick in (False, True):
        clip = scan_one(path, quick)
        assert (clip.defect, clip.frames) == (None, 24)
        assert_exact(clip, expected, rng)


@pytest.mark.parametrize(
    "matrix, turns", [((10, 65535, -65535, 10), 3), ((-65535, 3, -3, -65535), 2), ((0, 0, 0, 0), 0)], ids=str
)
def test_matrices_that_are_not_quite_rotations(tmp_path, matrix, turns, rng):
    """As players do: rounded, and none at all if there are zeros only."""
    path = tmp_path / "video.mp4"
    write(path, "h264", "mp4")
    expected = [np.rot90(frame, turns) for frame in plain_decode(path)]
    turn(path, matrix)
    assert_exact(scan_one(path), expected, rng)


def test_an_avi_that_does_not_know_its_size(tmp_path, rng):
    path = tmp_path / "video.avi"
    write(path, "mpeg4", "avi")
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 4 + content[8:])
    assert_exact(scan_one(path), plain_decode(path), rng)


@pytest.mark.parametrize("container", ["mp4", "mkv", "flv"])
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    "pixels, params",
    [("yuv420p", ""), ("yuv420p", "cqm=jvt"), ("yuv444p", "cqm=jvt"), ("yuv420p10le", ""), ("gray", "")],
)
def test_headers_say_whether_packets_may_be_fields(tmp_path, container, interlaced, pixels, params):
    """Two of them make a frame, so they cannot be counted without decoding."""
    path = tmp_path / f"video.{container}"
    options = {"x264-params": params} if params else {}
    write(path, "h264", container, frames=4, pixels=pixels, interlaced=interlaced, options=options)
    with av.open(str(path)) as file:
        header = file.streams.video[0].codec_context.extradata
    assert has_whole_frames(header) is not interlaced
    raw = b"\0\0\0\1" + header[8 : 8 + int.from_bytes(header[6:8], "big")]
    assert has_whole_frames(raw) is not interlaced
    assert not any(has_whole_frames(header[:length]) for length in range(12))
    clip = scan_one(path, quick=True)
    assert (clip.defect, clip.frames) == (None, 4)
    assert clip.decoded == (interlaced or container == "flv")
