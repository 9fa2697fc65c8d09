"""Several views of a video in evaluation: which, in which order, and what happens when one of them fails."""

import numpy as np
import pytest
import torch
from data.video_files import decode
from PIL import Image
from reference import sampling as official

from taf_fast.data import ClipLoader, EvaluationViews, Manifest, TrainingView, VideoDataset, scan
from taf_fast.data.clip import Sample

VIEWS = [EvaluationViews(crops, clips) for crops in (1, 3) for clips in (1, 2)]
RULES = ("segments", "shared", "interleaved")


def loader(manifest, views, **options) -> ClipLoader:
    settings = {"num_segments": 8, "size": 56, "batch_size": 8, "train": False}
    return ClipLoader(manifest, **settings | options, views=views)


def official_views(frames: np.ndarray, num_segments: int, rule: str, views: EvaluationViews, size: int):
    """The views of a decoded video [F, H, W, 3], each int [T, size', size', 3], resized by PIL."""
    n, height, width, _ = frames.shape
    scaled, squares = official.evaluation_squares(width, height, size, views.crops)
    for taken in official.evaluation_clips(n, num_segments, rule, views.clips):
        pictures = [Image.fromarray(frame).resize(scaled, Image.BILINEAR) for frame in frames[taken]]
        for x, y, side in squares:
            yield np.stack([np.asarray(p.crop((x, y, x + side, y + side)), int) for p in pictures])


def assert_views(actual: torch.Tensor, expected) -> None:
    for ours, view in zip(actual, expected, strict=True):
        # Either resize rounds twice, and is up to one level off.
        assert abs(ours.numpy() - view).max() <= 2


def clips_by_id(loading: ClipLoader) -> dict[str, torch.Tensor]:
    """The views of every clip [V, T, S, S, 3]."""
    return {
        name: clips
        for batch in loading
        for name, clips in zip(batch.ids, batch.clips.unflatten(0, (len(batch.ids), -1)), strict=True)
    }


@pytest.mark.slow
@pytest.mark.parametrize("views", VIEWS, ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_views_are_the_official_ones(mixed, rule, views):
    delivered = clips_by_id(loader(mixed, views, view=TrainingView(rule)))
    assert list(delivered) == [clip.id for clip in mixed.clips]
    for clip in mixed.clips:
        assert_views(delivered[clip.id], official_views(decode(clip.path), 8, rule, views, 56))


@pytest.mark.slow
@pytest.mark.parametrize("views", [EvaluationViews(1, 2), EvaluationViews(3, 2)], ids=str)
def test_batches_hold_whole_clips_and_no_more_views_than_asked_for(mixed, views, decoder):
    expected = clips_by_id(loader(mixed, views, batch_size=1000, decoder=decoder))
    for batch_size in (1, 6, 13):
        loading = loader(mixed, views, batch_size=batch_size, decoder=decoder)
        batches = list(loading)
        assert len(batches) == len(loading)
        assert {len(batch.ids) for batch in batches[:-1]} == {max(1, batch_size // len(views))}
        assert all(len(batch.clips) == len(batch.ids) * len(views) for batch in batches)
        delivered = clips_by_id(loader(mixed, views, batch_size=batch_size, decoder=decoder))
        assert all(torch.equal(delivered[name], expected[name]) for name in expected)


def frame_folder(path, frames: int, rng) -> Sample:
    path.mkdir()
    for number in range(1, frames + 1):
        noise = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8))
        noise.resize((40, 30), Image.BICUBIC).save(path / f"{number:05d}.jpg", quality=95)
    return Sample(path.name, path, label=frames)


@pytest.fixture
def short(tmp_path, rng) -> Manifest:
    """Folders of 3 to 18 frames; the label of each is their number."""
    samples = tuple(frame_folder(tmp_path / str(n), n, rng) for n in range(3, 19))
    return scan(VideoDataset(tmp_path, "validation", tuple(map(str, range(20))), samples, "ssv1"))


@pytest.mark.parametrize("clips", [1, 2])
@pytest.mark.parametrize("rule", RULES)
def test_clips_of_few_frames_are_delivered_by_the_official_rules(short, rule, clips):
    views = EvaluationViews(clips=clips)
    loading = loader(short, views, view=TrainingView(rule), size=24)
    delivered = clips_by_id(loading)
    assert list(delivered) == [str(n) for n in range(3, 19)] and not loading.quarantined
    for clip in short.clips:
        assert_views(delivered[clip.id], official_views(decode(clip.path), 8, rule, views, 24))


def test_a_clip_with_a_bad_view_is_left_out_whole(short, decoder):
    views = EvaluationViews(crops=3, clips=2)
    settings = {"batch_size": 18, "quarantine_limit": 0.2, "decoder": decoder}
    expected = clips_by_id(loader(short, views, **settings))
    # From 16 frames the first clip takes every other one; from 13 only the second takes the last but one.
    (short.clips[13].path / "00002.jpg").unlink()
    (short.clips[10].path / "00012.jpg").write_bytes(b"no picture")
    loading = loader(short, views, **settings)
    batches = list(loading)
    for batch in batches:
        assert len(batch.clips) == 6 * len(batch.ids)
        assert batch.labels.tolist() == [int(name) for name in batch.ids]
    good = [name for name in expected if name not in ("13", "16")]
    assert [name for batch in batches for name in batch.ids] == good
    delivered = clips_by_id(loader(short, views, **settings))
    assert all(torch.equal(delivered[name], expected[name]) for name in good)
    assert loading.quarantined == {
        "13": "frame 00012.jpg is not a JPEG picture",
        "16": "missing frame 00002.jpg",
    }


@pytest.mark.parametrize(("crops", "clips"), [(2, 1), (0, 1), (5, 1), (1, 0), (1, 3), (1, -1)])
def test_impossible_views_are_named(crops, clips):
    name, value = ("clips", clips) if crops == 1 else ("crops", crops)
    with pytest.raises(ValueError, match=f"{name} must be 1 or ., got {value}"):
        EvaluationViews(crops, clips)


def test_training_has_one_view(mixed):
    with pytest.raises(ValueError, match="views must be one in training, got 3"):
        loader(mixed, EvaluationViews(crops=3), train=True)
