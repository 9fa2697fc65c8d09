"""Delivered frames against PyAV's and PIL's decoders and two independent resizes."""

from dataclasses import replace

import av
import numpy as np
import pytest
from data.video_files import decode, encode
from PIL import Image
from reference.resize import triangle

from taf_fast.data import ClipLoader, Manifest, TrainingView, VideoDataset, read_dataset, scan
from taf_fast.data.clip import Box, Sample, VideoFile
from taf_fast.data.decoding.dali import VIDEO, ClipDecoder
from taf_fast.data.views.planner import ClipPlan, plan


def assert_is_planned(actual, path, plan: ClipPlan, decoder: str, turns: int = 0) -> None:
    """``actual`` [T, size, size, 3] is the planned crop of the planned frames, resized and cut.

    ``turns`` are quarter turns counter-clockwise, before cropping.
    """
    size = actual.shape[1]
    assert actual.shape == (len(plan.frames), size, size, 3)
    y, x, height, width = plan.box
    crop = np.rot90(decode(path)[plan.frames], turns, (1, 2))[:, y : y + height, x : x + width]
    actual = np.asarray(actual).astype(float)
    # Half a level is rounding; PyTorch and PIL round twice, and their weights.
    scaled, (y, x) = plan.scaled or (size, size), plan.corner
    cut = (slice(None), slice(y, y + size), slice(x, x + size))
    error = abs(actual - triangle(crop, scaled, repeat_edges=decoder == "dali")[cut]).max()
    assert error < (0.51 if decoder == "dali" else 1.2)
    pil = np.stack([np.asarray(Image.fromarray(f).resize(scaled[::-1], Image.BILINEAR)) for f in crop])[cut]
    # DALI treats the edge otherwise when shrinking; inside it agrees.
    inside = slice(1, -1) if decoder == "dali" else slice(None)
    difference = abs(actual - pil)[:, inside, inside]
    # PyTorch and PIL can each be a level off, to different sides.
    assert difference.max() <= (1 if decoder == "dali" else 2) and (difference > 1).mean() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("size", [48, 112])
def test_delivered_clips_are_the_planned_ones(mixed, roots, train, size, seed, decoder):
    labels = {
        f"{name}-{sample.id}": sample.label
        for name, root in roots.items()
        for sample in read_dataset(root, "train").samples
    }
    loader = ClipLoader(mixed, 8, size, 6, train, seed=seed, decoder=decoder)
    delivered = {
        name: (clip, int(label))
        for batch in loader
        for name, clip, label in zip(batch.ids, batch.clips, batch.labels, strict=True)
    }
    assert len(delivered) == len(mixed.clips) == 24
    for position, clip in enumerate(mixed.clips):
        pixels, label = delivered[clip.id]
        assert label == labels[clip.id]
        assert_is_planned(pixels, clip.path, plan(clip, position, 8, size, seed, 0, train), decoder)


def test_crops_of_any_shape(mixed, seed, by_id, decoder):
    view = TrainingView(crop="random_resized")
    delivered = by_id(ClipLoader(mixed, 8, 40, 6, True, seed=seed, view=view, decoder=decoder))
    for position, clip in enumerate(mixed.clips):
        planned = plan(clip, position, 8, 40, seed, 0, True, view)
        assert_is_planned(delivered[clip.id], clip.path, planned, decoder)


def test_pyav_and_dali_decode_to_the_same_pixels(clean, seed, by_id, assert_same_clips):
    """DALI decodes VP9; of a codec it does not know PyAV does."""
    expected = by_id(ClipLoader(clean, 8, 64, 6, True, seed=seed, decoder="dali"))
    other = Manifest(clean.classes, tuple(replace(clip, source=VideoFile("other")) for clip in clean.clips))
    assert_same_clips(by_id(ClipLoader(other, 8, 64, 6, True, seed=seed, decoder="dali")), expected)


def one_clip(path) -> Manifest:
    return scan(VideoDataset(path.parent, "train", ("a",), (Sample("1", path, 0),), "ssv2"))


@pytest.mark.parametrize(
    ("codec", "container", "size", "pixels"),
    [
        ("libx264", "mp4", (96, 72), "yuv420p"),
        ("libx264", "mp4", (95, 71), "yuv444p"),
        ("libx264", "matroska", (96, 72), "yuv420p"),
        ("libx264", "mpegts", (96, 72), "yuv420p"),
        ("libx265", "mp4", (96, 72), "yuv420p"),
        ("mpeg4", "mp4", (95, 71), "yuv420p"),
        ("mpeg4", "avi", (96, 72), "yuv420p"),
        ("libsvtav1", "mp4", (96, 72), "yuv420p"),
        ("libvpx-vp9", "mp4", (95, 71), "yuv420p"),
    ],
)
def test_codecs_containers_and_odd_sizes(tmp_path, codec, container, size, pixels, seed, by_id, decoder):
    if codec not in av.codecs_available:
        pytest.skip(f"FFmpeg was built without {codec}")
    encode(tmp_path / "video", codec, 21, container, size, pixels=pixels)
    manifest = one_clip(tmp_path / "video")
    (clip,) = manifest.clips
    assert clip.defect is None and (clip.frames, *clip.size) == (21, size[1], size[0])
    delivered = by_id(ClipLoader(manifest, 8, 40, 1, train=True, seed=seed, decoder=decoder))
    assert_is_planned(delivered["1"], clip.path, plan(clip, 0, 8, 40, seed, 0, True), decoder)


@pytest.mark.parametrize("codec", ["libx264", "libvpx-vp9"])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotated_videos_are_turned(tmp_path, codec, rotation, seed, by_id, decoder):
    encode(tmp_path / "video", codec, 12, "mp4", rotation=rotation)
    manifest = one_clip(tmp_path / "video")
    (clip,) = manifest.clips
    assert clip.size == ((96, 72) if rotation % 180 else (72, 96))
    delivered = by_id(ClipLoader(manifest, 8, 40, 1, train=True, seed=seed, decoder=decoder))
    planned = plan(clip, 0, 8, 40, seed, 0, True)
    assert_is_planned(delivered["1"], clip.path, planned, decoder, rotation // 90)


@pytest.mark.parametrize(("codec", "container"), [("libvpx-vp9", "webm"), ("libx264", "mp4")])
def test_frames_are_counted_not_timed(tmp_path, codec, container, rng, seed, by_id, decoder):
    """A variable frame rate: frames are shown for 1 to 400 milliseconds."""
    times = np.cumsum(rng.integers(1, 400, 30)).tolist()
    encode(tmp_path / "video", codec, 30, container, times=times)
    manifest = one_clip(tmp_path / "video")
    (clip,) = manifest.clips
    assert clip.defect is None and clip.frames == 30
    delivered = by_id(ClipLoader(manifest, 8, 40, 1, train=True, seed=seed, decoder=decoder))
    assert_is_planned(delivered["1"], clip.path, plan(clip, 0, 8, 40, seed, 0, True), decoder)


@pytest.mark.parametrize("colourspace", [1, 5])
@pytest.mark.parametrize("full", [False, True])
def test_colours_are_converted_by_bt601_whatever_the_tag(tmp_path, colourspace, full):
    """As DALI does, so that a clip's colours do not depend on who decodes it."""
    path, colour = tmp_path / "flat.mp4", (90, 160, 80)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=12, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.colorspace = colourspace
        stream.codec_context.color_range = 2 if full else 1
        planes = np.concatenate([np.full((64, 64), colour[0]), np.full((16, 64), colour[1])])
        planes = np.concatenate([planes, np.full((16, 64), colour[2])]).astype(np.uint8)
        for _ in range(8):
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.colorspace, frame.color_range = colourspace, 2 if full else 1
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        assert (frame.colorspace, frame.color_range) == (colourspace, 2 if full else 1)
        stored = frame.to_ndarray()
        y, u, v = (float(plane.mean()) for plane in (stored[:64], stored[64:80], stored[80:]))
    y, u, v = (y if full else (y - 16) * 255 / 219), u - 128, v - 128
    u, v = (u, v) if full else (u * 255 / 224, v * 255 / 224)
    expected = [y + 1.402 * v, y - 0.344136 * u - 0.714136 * v, y + 1.772 * u]
    (batch,) = ClipLoader(one_clip(path), 8, 16, 1, train=False)
    assert abs(batch.clips.double().numpy() - expected).max() <= 1


def test_every_frame_is_exactly_its_own(clean):
    """Uncropped and unscaled, so that nothing blurs a frame into its neighbours."""
    clip = clean.clips[0]
    order = np.random.default_rng(0).permutation(clip.frames).astype(np.int32)
    for wanted in (order, order[:1], np.repeat(order[:3], 2)):
        square = ClipPlan(wanted, Box(0, 0, 72, 72), label=0)
        pixels, sizes = ClipDecoder(VIDEO, 72, 1, 1, None)([np.fromfile(clip.path, np.uint8)], [square])
        assert np.array_equal(pixels[0], decode(clip.path)[wanted][:, :, :72])
        assert sizes.tolist() == [[72, 96]]


REAL_CLIPS = [
    "testsrc2_vp9.webm",
    "testsrc2_vp8.webm",
    "testsrc2_odd_width_vp9.mp4",
    "arm_wrestling_h264.mp4",
    "flipping_a_pancake.mkv",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL_CLIPS)
def test_real_clips(real_clip, name, decoder):
    path = real_clip(name)
    manifest = one_clip(path)
    (clip,) = manifest.clips
    frames = decode(path)
    assert clip.defect is None and (clip.frames, *clip.size, 3) == frames.shape
    (batch,) = ClipLoader(manifest, 8, 224, 1, train=False, decoder=decoder)
    assert_is_planned(batch.clips[0], path, plan(clip, 0, 8, 224, 0, 0, False), decoder)


def test_mixed_codecs_and_sizes_share_a_batch(real_clip, clean, tmp_path, by_id, decoder):
    paths = [real_clip("testsrc2_vp8.webm"), real_clip("testsrc2_odd_width_vp9.mp4"), clean.clips[0].path]
    samples = tuple(Sample(str(i), path, 0) for i, path in enumerate(paths))
    manifest: Manifest = scan(VideoDataset(tmp_path, "train", ("a",), samples, "ssv2"))
    delivered = by_id(ClipLoader(manifest, 8, 64, 3, train=False, decoder=decoder))
    for position, clip in enumerate(manifest.clips):
        assert_is_planned(delivered[clip.id], clip.path, plan(clip, position, 8, 64, 0, 0, False), decoder)
