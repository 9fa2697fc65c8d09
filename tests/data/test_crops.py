"""Crops against the official rules, for frames of every kind of size."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import sampling as official

from taf_fast.data.views import crops

# Something-Something V1 and V2, Diving48, upright, square, odd, tiny.
FRAMES = [
    *((176, 100), (132, 100), (100, 178), (427, 240), (240, 427), (326, 240), (1280, 720), (256, 256)),
    *((224, 300), (222, 400), (401, 223), (341, 255), (225, 225), (131, 97), (96, 72), (37, 640)),
]


class Script:
    """A random source that gives ``draws`` one after the other."""

    def __init__(self, *draws: int):
        self.draws, self.highs = iter(draws), []

    def integers(self, high: int) -> int:
        self.highs.append(high)
        return next(self.draws)


def official_multi_scale(width: int, height: int, size: int) -> list[tuple[int, int, int, int]]:
    boxes = []
    for h, w in official.crop_sizes(width, height, size):
        # Official crops can be up to 2 pixels larger than the frame, and black there.
        h, w = min(h, width, height), min(w, width, height)
        boxes += [(y, x, h, w) for y, x in official.crop_offsets(width, height, w, h)]
    return boxes


@pytest.mark.parametrize("size", [224, 112, 98, 64])
@pytest.mark.parametrize(("width", "height"), FRAMES)
def test_multi_scale_crops_are_all_the_official_ones(width, height, size):
    drawn = []
    for draws in product(range(10), range(13)):
        script = Script(*draws)
        drawn.append(crops.multi_scale_crop(width, height, size, script))
        assert script.highs == [10, 13]
    assert Counter(drawn) == Counter(official_multi_scale(width, height, size))


def test_multi_scale_crops_are_uniform(rng):
    draws = 26000
    expected = Counter(official_multi_scale(427, 240, 224) * (draws // 130))
    drawn = Counter(crops.multi_scale_crop(427, 240, 224, rng) for _ in range(draws))
    assert drawn.keys() == expected.keys()
    assert all(abs(drawn[crop] - mean) < 6 * mean**0.5 for crop, mean in expected.items())


def test_multi_scale_crops_have_13_positions(rng):
    drawn = {crops.multi_scale_crop(400, 300, 64, rng) for _ in range(5000)}
    assert len({(y, x) for y, x, h, w in drawn if (h, w) == (225, 225)}) == 13


@given(*(st.integers(1, 700) for _ in range(3)), st.integers(0, 2**32))
def test_crops_stay_inside_the_frame(width, height, size, seed):
    for y, x, h, w in (
        crops.multi_scale_crop(width, height, size, np.random.default_rng(seed)),
        crops.center_crop(width, height),
        *crops.three_crops(width, height),
    ):
        assert min(y, x) >= 0 and min(h, w) >= 1 and y + h <= height and x + w <= width


def test_center_crop():
    assert crops.center_crop(427, 240) == (15, 108, 210, 210)
    assert crops.center_crop(256, 320) == (48, 16, 224, 224)


@pytest.mark.parametrize(("width", "height"), FRAMES)
def test_three_crops_are_the_official_ones_to_the_nearest_pixel(width, height):
    boxes = crops.three_crops(width, height)
    side = min(width, height)
    assert all(box[2:] == (side, side) for box in boxes)
    along, across = (1, 0) if width >= height else (0, 1)
    assert all(box[across] == 0 for box in boxes)
    expected = sorted(official.full_resolution_offsets(width, height))
    assert all(abs(box[along] - offset) <= 0.5 for box, offset in zip(boxes, expected, strict=True))


def test_three_crops_of_frames_in_use():
    assert crops.three_crops(427, 240) == [(0, x, 240, 240) for x in (0, 92, 184)]
    assert crops.three_crops(240, 427) == [(y, 0, 240, 240) for y in (0, 92, 184)]
    assert crops.three_crops(176, 100) == [(0, x, 100, 100) for x in (0, 38, 75)]
    assert crops.three_crops(256, 256) == [(0, 0, 256, 256)] * 3


def test_three_crops_are_delivered_at_the_scale_of_the_centre_crop():
    assert [crops.full_size(size) for size in (224, 112, 32)] == [256, 128, 36]
