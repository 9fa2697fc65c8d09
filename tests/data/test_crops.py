"""Crops against the official rules, for frames of every kind of size."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import sampling as official

from taf_fast.data.clip import Size
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
        drawn.append(crops.multi_scale_crop(Size(height, width), size, script))
        assert script.highs == [10, 13]
    assert Counter(drawn) == Counter(official_multi_scale(width, height, size))


def test_multi_scale_crops_are_uniform(rng):
    draws = 26000
    expected = Counter(official_multi_scale(427, 240, 224) * (draws // 130))
    drawn = Counter(crops.multi_scale_crop(Size(240, 427), 224, rng) for _ in range(draws))
    assert drawn.keys() == expected.keys()
    assert all(abs(drawn[crop] - mean) < 6 * mean**0.5 for crop, mean in expected.items())


def test_multi_scale_crops_have_13_positions(rng):
    drawn = {crops.multi_scale_crop(Size(300, 400), 64, rng) for _ in range(5000)}
    assert len({(y, x) for y, x, h, w in drawn if (h, w) == (225, 225)}) == 13


@pytest.mark.slow
@given(*(st.integers(1, 700) for _ in range(3)), st.integers(0, 2**32))
def test_crops_stay_inside_the_frame(width, height, size, seed):
    for y, x, h, w in (
        crops.multi_scale_crop(Size(height, width), size, np.random.default_rng(seed)),
        crops.random_resized_crop(Size(height, width), np.random.default_rng(seed)),
    ):
        assert min(y, x) >= 0 and min(h, w) >= 1 and y + h <= height and x + w <= width
    for side, taken in (
        (size, [crops.center_crop(Size(height, width), size)]),
        (crops.full_size(size), crops.three_crops(Size(height, width), size)),
    ):
        for (y, x, h, w), scaled, corner in taken:
            assert min(y, x) >= 0 and y + h <= height and x + w <= width and max(h, w) <= 16 * min(h, w)
            for start, end in zip(corner, scaled, strict=True):
                assert start >= 0 and start + side <= end


@pytest.mark.parametrize("size", [224, 112, 56])
@pytest.mark.parametrize(("width", "height"), FRAMES)
def test_evaluation_squares_are_the_official_ones(width, height, size):
    frame = Size(height, width)
    for count, taken in ((1, [crops.center_crop(frame, size)]), (3, crops.three_crops(frame, size))):
        scaled, squares = official.evaluation_squares(width, height, size, count)
        if max(frame) > 16 * min(frame):
            continue
        assert all(crop.box == (0, 0, height, width) and crop.scaled == scaled[::-1] for crop in taken)
        assert [crop.corner[::-1] for crop in taken] == [square[:2] for square in squares]


def test_evaluation_of_long_frames_takes_their_middle():
    """The resized frame would be 256 x 262144 pixels."""
    assert crops.center_crop(Size(4, 4096), 224) == ((0, 2016, 4, 64), (256, 4096), (16, 1936))
    assert crops.center_crop(Size(4096, 4), 224) == ((2016, 0, 64, 4), (4096, 256), (1936, 16))
    assert [crop.corner for crop in crops.three_crops(Size(4, 4096), 224)] == [(0, 0), (0, 1920), (0, 3840)]


def test_the_short_side_of_evaluation():
    assert [crops.full_size(size) for size in (224, 112, 32)] == [256, 128, 36]
