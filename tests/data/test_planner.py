"""Sampling, crops and order against the official rules."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import sampling as official

from taf_fast.data import crops, planner, sampling
from taf_fast.data.manifest import Clip


@pytest.mark.parametrize("num_segments", [8, 16])
def test_train_frames_are_the_official_ones_for_equal_draws(num_segments, seed):
    for n in range(1, 131):
        ours = sampling.train_frames(n, num_segments, "segments", np.random.default_rng([seed, n]))
        drawn = np.random.default_rng([seed, n]).integers(max(1, n // num_segments), size=num_segments)
        draws = iter(drawn.tolist())
        assert ours.tolist() == official.train_indices(n, num_segments, lambda high, draws=draws: next(draws))
        assert ours.dtype == np.int32


@pytest.mark.parametrize(("n", "num_segments"), [(8, 8), (15, 8), (40, 8), (37, 16)])
def test_every_frame_of_every_segment_is_drawn(n, num_segments, rng):
    length = n // num_segments
    drawn = np.stack([sampling.train_frames(n, num_segments, "segments", rng) for _ in range(60 * length)])
    for segment, column in enumerate(drawn.T):
        assert set(column) == set(range(segment * length, (segment + 1) * length))


@pytest.mark.parametrize("num_segments", [8, 16])
def test_val_frames_are_the_official_ones(num_segments):
    for n in range(1, 131):
        assert sampling.val_frames(n, num_segments, "segments").tolist() == official.val_indices(
            n, num_segments
        )


@pytest.mark.parametrize(
    ("width", "height", "size"), [(427, 240, 224), (240, 427, 224), (320, 240, 180), (96, 72, 64)]
)
def test_crops_are_the_official_ones_and_uniform(width, height, size, rng):
    draws = 26000
    expected = Counter()
    pairs = official.crop_sizes(width, height, size)
    for h, w in pairs:
        for y, x in official.crop_offsets(width, height, w, h):
            expected[y, x, h, w] += draws / len(pairs) / 13
    drawn = Counter(crops.multi_scale_crop(width, height, size, rng) for _ in range(draws))
    assert drawn.keys() == expected.keys()
    assert all(abs(drawn[crop] - mean) < 6 * mean**0.5 for crop, mean in expected.items())


def test_crop_has_13_positions(rng):
    drawn = {crops.multi_scale_crop(400, 300, 64, rng) for _ in range(5000)}
    assert len({(y, x) for y, x, h, w in drawn if (h, w) == (225, 225)}) == 13


@given(*(st.integers(1, 700) for _ in range(3)), st.integers(0, 2**32))
def test_crops_stay_inside_the_frame(width, height, size, seed):
    for y, x, h, w in (
        crops.multi_scale_crop(width, height, size, np.random.default_rng(seed)),
        crops.center_crop(width, height),
    ):
        assert min(y, x) >= 0 and min(h, w) >= 1 and y + h <= height and x + w <= width


def test_center_crop():
    assert crops.center_crop(427, 240) == (15, 108, 210, 210)
    assert crops.center_crop(256, 320) == (48, 16, 224, 224)


def test_plans_depend_on_seed_epoch_and_position_only():
    clip = Clip("1", None, 0, frames=60, width=427, height=240)

    def key(position=3, seed=1, epoch=2, train=True):
        plan = planner.plan(clip, position, 8, 224, seed, epoch, train)
        return (*plan.frames.tolist(), plan.y, plan.x, plan.height, plan.width)

    assert key() == key()
    assert len({key(), key(position=4), key(seed=2), key(epoch=3)}) == 4
    assert key(train=False) == key(position=4, seed=2, epoch=3, train=False)


sizes = {"n": st.integers(0, 200), "world_size": st.integers(1, 5), "batch_size": st.integers(1, 9)}


@given(**sizes, shuffle=st.booleans(), drop_last=st.booleans(), seed=st.integers(0, 99))
def test_ranks_are_disjoint_and_have_equal_steps(n, world_size, batch_size, shuffle, drop_last, seed):
    ranks = [
        planner.epoch_order(n, seed, 1, shuffle, rank, world_size, batch_size, drop_last)
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    taken = [int(i) for batches in ranks for batch in batches for i in batch]
    assert len(taken) == len(set(taken))
    together = world_size * batch_size
    if not drop_last:
        assert sorted(taken) == list(range(n))
    elif n >= together:
        assert len(taken) == n - n % together
        assert all(len(batch) == batch_size for batches in ranks for batch in batches)
    else:
        assert len(taken) == n - n % world_size


def test_order_is_shuffled_by_seed_and_epoch():
    def order(seed=0, epoch=0, shuffle=True):
        return [
            int(i) for batch in planner.epoch_order(50, seed, epoch, shuffle, 0, 1, 8, False) for i in batch
        ]

    assert order() == order()
    assert order() != order(seed=1) and order() != order(epoch=1)
    assert order(shuffle=False) == list(range(50))
