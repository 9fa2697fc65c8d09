"""Training views: random crops, flips, labels and colours against the official rules."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import colour as official_colour
from reference import sampling as official

from taf_fast.data import ClipLoader, TrainingView
from taf_fast.data.clip import Clip, Size
from taf_fast.data.views import crops, planner
from taf_fast.data.views.colour import apply_colours, draw_colours

SETTINGS = {"num_segments": 8, "size": 32, "batch_size": 4, "train": True}
EVERYTHING = TrainingView("shared", "random_resized", flip=True, swap=((0, 1), (6, 3)), colour=True)

FRAMES = [(427, 240), (240, 427), (176, 100), (131, 100), (341, 255), (223, 397), (40, 640), (9, 7)]


@pytest.mark.parametrize(("width", "height"), FRAMES)
def test_random_resized_crops_are_the_official_ones_for_equal_draws(width, height, rng):
    for seed in rng.integers(2**32, size=300).tolist():
        ours = crops.random_resized_crop(Size(height, width), np.random.default_rng(seed))
        same = np.random.default_rng(seed)
        left, top, right, bottom = official.tpn_crop(
            width, height, same.uniform, same.random, lambda high, same=same: int(same.integers(high))
        )
        assert ours == (top, left, bottom - top + 1, right - left + 1)


@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 2**32))
def test_random_resized_crops_stay_inside_the_frame(width, height, seed):
    y, x, h, w = crops.random_resized_crop(Size(height, width), np.random.default_rng(seed))
    assert min(y, x) >= 0 and min(h, w) >= 1 and y + h <= height and x + w <= width


def test_random_resized_crops_of_a_square_are_of_every_area_and_shape(rng):
    """Of a square nothing is cut off but by chance: areas are uniform, ratios symmetric."""
    drawn = np.array([crops.random_resized_crop(Size(300, 300), rng) for _ in range(4000)])
    heights, widths = drawn[:, 2], drawn[:, 3]
    inside = (drawn[:, 0] + heights < 300) & (drawn[:, 1] + widths < 300)
    ratios = np.log(widths[inside] / heights[inside])
    assert abs(ratios).max() < np.log(4 / 3) + 0.03 and abs(ratios.mean()) < 0.03
    assert abs(ratios).max() > 0.25
    areas = (heights * widths)[inside] / 300**2
    assert 0.07 < areas.min() < 0.1 and areas.max() > 0.9


def plans(view: TrainingView, seed: int, count: int, label: int = 0, train: bool = True):
    clip = Clip("1", None, label, frames=60, size=Size(240, 427))
    return [planner.plan(clip, position, 8, 224, seed, 0, train, view) for position in range(count)]


def test_further_choices_change_neither_frames_nor_crops(seed):
    plain = plans(TrainingView(), seed, 50)
    more = plans(TrainingView(flip=True, colour=True), seed, 50)
    for a, b in zip(plain, more, strict=True):
        assert a.frames.tolist() == b.frames.tolist()
        assert (a.box, a.label) == (b.box, b.label)
        assert not a.mirror and a.colours is None
        assert b.colours.shape == (8, 3, 4) and b.colours.dtype == np.float32


def test_half_of_the_clips_are_mirrored_and_exactly_their_labels_swapped(seed):
    mapping = {0: 1, 1: 0, 2: 2, 3: 6, 4: 4, 5: 5, 6: 3}
    for label, other in mapping.items():
        drawn = plans(EVERYTHING, seed + label, 400, label)
        assert {(plan.mirror, plan.label) for plan in drawn} == {(False, label), (True, other)}
        assert 130 < sum(plan.mirror for plan in drawn) < 270
    unswapped = plans(TrainingView(flip=True), seed, 100)
    assert {(plan.mirror, plan.label) for plan in unswapped} == {(False, 0), (True, 0)}


def test_evaluation_looks_at_the_rule_for_short_clips_only(seed):
    for n in (8, 9, 60):
        clip = Clip("1", None, 3, frames=n, size=Size(240, 427))
        plan = planner.plan(clip, 0, 8, 224, seed, 0, False, EVERYTHING)
        assert plan.frames.tolist() == official.tam_clips(n, 8, num_clips=1)[0]
        assert (plan.box, plan.scaled, plan.corner) == ((0, 0, 240, 427), (256, 455), (16, 116))
        assert plan.label == 3 and not plan.mirror and plan.colours is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sampling": "dense"}, "sampling must be one of segments, shared, interleaved, got 'dense'"),
        ({"crop": "centre"}, "crop must be one of multi_scale, random_resized, got 'centre'"),
        ({"swap": ((0, 1),)}, "swap exchanges"),
        ({"flip": True, "swap": ((0, 1), (1, 2))}, "swap must be pairs"),
        ({"flip": True, "swap": ((0, 0),)}, "swap must be pairs"),
        ({"flip": True, "swap": ((0, 1, 2),)}, "swap must be pairs"),
        ({"flip": True, "swap": ((-1, 2),)}, "swap must be pairs"),
    ],
)
def test_impossible_views_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        TrainingView(**wrong)


def test_loaders_deliver_mirrored_clips_with_swapped_labels(mixed, seed):
    pairs = ((0, 1), (2, 5))
    partner = dict([*pairs, *((b, a) for a, b in pairs)])
    plain = ClipLoader(mixed, **SETTINGS, seed=seed)
    flipping = ClipLoader(mixed, **SETTINGS, seed=seed, view=TrainingView(flip=True, swap=pairs))
    mirrored = 0
    for _ in range(2):
        for batch, other in zip(plain, flipping, strict=True):
            assert batch.ids == other.ids
            for a, b, x, y in zip(
                batch.clips, other.clips, batch.labels.tolist(), other.labels.tolist(), strict=True
            ):
                flip = not torch.equal(a, b)
                mirrored += flip
                assert torch.equal(b, a.flip(-2) if flip else a)
                assert y == (partner.get(x, x) if flip else x)
    assert 6 < mirrored < 42


def test_maps_are_the_official_colours_for_equal_draws(rng):
    frames = rng.integers(0, 256, (8, 5, 4, 3), dtype=np.uint8)
    for seed in rng.integers(2**32, size=100).tolist():
        maps = draw_colours(8, np.random.default_rng(seed))
        same = np.random.default_rng(seed)
        expected = official_colour.jitter(
            frames,
            same.uniform,
            lambda same=same: same.normal(0, 0.1),
            lambda same=same: same.random() < 0.5,
        )
        affine = np.einsum("tij,thwj->thwi", maps[:, :, :3].astype(float), frames) + maps[:, None, None, :, 3]
        assert abs(affine - expected).max() < 1e-3
        # Rounded and clipped once, at the end.
        delivered = frames.copy()
        apply_colours(delivered, maps)
        assert abs(delivered - expected.clip(0, 255)).max() < 0.501


def test_colours_differ_between_frames_and_half_of_the_steps_are_left_out(rng):
    """Eight frames of one clip: every choice of steps is drawn for each of them."""
    different = [len(np.unique(draw_colours(8, rng).reshape(8, -1), axis=0)) for _ in range(50)]
    assert np.median(different) >= 4
    untouched = [np.allclose(m[:, :3], np.eye(3)) for _ in range(400) for m in draw_colours(8, rng)]
    assert abs(np.mean(untouched) - 1 / 8) < 0.04  # contrast, saturation and hue all left out


def test_loaders_deliver_coloured_clips(mixed, seed):
    view = TrainingView(colour=True)
    plain = ClipLoader(mixed, **SETTINGS, seed=seed)
    coloured = ClipLoader(mixed, **SETTINGS, seed=seed, view=view)
    positions = {clip.id: position for position, clip in enumerate(mixed.clips)}
    for batch, other in zip(plain, coloured, strict=True):
        assert batch.ids == other.ids
        for name, a, b in zip(batch.ids, batch.clips, other.clips, strict=True):
            position = positions[name]
            maps = planner.plan(mixed.clips[position], position, 8, 32, seed, 0, True, view).colours
            value = np.einsum("tij,thwj->thwi", maps[:, :, :3].astype(float), a.numpy())
            expected = (value + maps[:, None, None, :, 3]).clip(0, 255)
            assert abs(b.numpy() - expected).max() < 0.501


def test_pixels_of_a_view_depend_on_neither_threads_nor_batch_size(mixed, seed, by_id, assert_same_clips):
    settings = SETTINGS | {"seed": seed, "view": EVERYTHING}
    expected = by_id(ClipLoader(mixed, **settings))
    for option in ({"threads": 1}, {"batch_size": 1}, {"batch_size": 24}):
        assert_same_clips(by_id(ClipLoader(mixed, **settings | option)), expected)


@pytest.mark.parametrize("sampling", ["segments", "shared"])
@pytest.mark.parametrize("crop", ["multi_scale", "random_resized"])
def test_every_sampling_and_crop_delivers_every_clip(mixed, sampling, crop, seed, by_id):
    assert len(by_id(ClipLoader(mixed, **SETTINGS, seed=seed, view=TrainingView(sampling, crop)))) == 24
