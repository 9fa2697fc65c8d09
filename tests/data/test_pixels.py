"""DALI's frames against PyAV's decoder and two independent resizes."""

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from PIL import Image
from reference.resize import triangle

from taf_fast.data import ClipLoader, Manifest, VideoDataset, read_ssv2, scan
from taf_fast.data.pipeline import ClipDecoder
from taf_fast.data.planner import ClipPlan, plan
from taf_fast.data.ssv2 import Sample

# Bilinear with full chroma interpolation and accurate rounding: what DALI does.
EXACT = 0x42002


def decode(path) -> np.ndarray:
    """All frames of a file, RGB uint8 [F, H, W, 3]."""
    reformatter = VideoReformatter()
    with av.open(str(path)) as container:
        return np.stack(
            [
                reformatter.reformat(frame, format="rgb24", interpolation=EXACT).to_ndarray()
                for frame in container.decode(video=0)
            ]
        )


def assert_is_planned(actual, path, plan: ClipPlan) -> None:
    """``actual`` [T, size, size, 3] is the planned crop of the planned frames, resized."""
    size = actual.shape[1]
    assert actual.shape == (len(plan.frames), size, size, 3)
    y, x = slice(plan.y, plan.y + plan.height), slice(plan.x, plan.x + plan.width)
    crop = decode(path)[plan.frames][:, y, x]
    actual = np.asarray(actual).astype(float)
    # Half a level is rounding.
    assert abs(actual - triangle(crop, size)).max() < 0.51
    # PIL treats the edge otherwise when shrinking; inside it agrees.
    pil = np.stack([np.asarray(Image.fromarray(f).resize((size, size), Image.BILINEAR)) for f in crop])
    assert abs(actual - pil)[:, 1:-1, 1:-1].max() <= 1


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("size", [48, 112])
def test_delivered_clips_are_the_planned_ones(clean, clean_root, train, size, seed, by_id):
    labels = {sample.id: sample.label for sample in read_ssv2(clean_root, "train").samples}
    loader = ClipLoader(clean, 8, size, 6, train, seed=seed)
    delivered = {
        name: (clip, int(label))
        for batch in loader
        for name, clip, label in zip(batch.ids, batch.clips, batch.labels, strict=True)
    }
    assert len(delivered) == len(clean.clips)
    for position, clip in enumerate(clean.clips):
        pixels, label = delivered[clip.id]
        assert label == labels[clip.id]
        assert_is_planned(pixels, clip.path, plan(clip, position, 8, size, seed, 0, train))


def test_every_frame_is_exactly_its_own(clean):
    """Uncropped and unscaled, so that nothing blurs a frame into its neighbours."""
    clip = clean.clips[0]
    order = np.random.default_rng(0).permutation(clip.frames).astype(np.int32)
    for wanted in (order, order[:1], np.repeat(order[:3], 2)):
        square = ClipPlan(wanted, 0, 0, 72, 72)
        pixels, shapes = ClipDecoder(72, 1, 1)([np.fromfile(clip.path, np.uint8)], [square])
        assert np.array_equal(pixels[0], decode(clip.path)[wanted][:, :, :72])
        assert shapes.tolist() == [[len(wanted), 72, 96, 3]]


@pytest.mark.parametrize("name", ["testsrc2_vp9.webm", "testsrc2_vp8.webm", "testsrc2_odd_width_vp9.mp4"])
def test_real_clips(real_clip, name, tmp_path):
    path = real_clip(name)
    manifest = scan(VideoDataset(tmp_path, "train", ("a",), (Sample("1", path, 0),)), 8)
    (clip,) = manifest.clips
    frames = decode(path)
    assert clip.defect is None and (clip.frames, clip.height, clip.width, 3) == frames.shape
    (batch,) = ClipLoader(manifest, 8, 224, 1, train=False)
    assert_is_planned(batch.clips[0], path, plan(clip, 0, 8, 224, 0, 0, False))


def test_mixed_codecs_and_sizes_share_a_batch(real_clip, clean, tmp_path, by_id):
    paths = [real_clip("testsrc2_vp8.webm"), real_clip("testsrc2_odd_width_vp9.mp4"), clean.clips[0].path]
    samples = tuple(Sample(str(i), path, 0) for i, path in enumerate(paths))
    manifest: Manifest = scan(VideoDataset(tmp_path, "train", ("a",), samples), 8)
    delivered = by_id(ClipLoader(manifest, 8, 64, 3, train=False))
    for position, clip in enumerate(manifest.clips):
        assert_is_planned(delivered[clip.id], clip.path, plan(clip, position, 8, 64, 0, 0, False))
