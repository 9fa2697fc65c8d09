"""Frames against the official rules, for clips shorter and longer than their samples."""

from fractions import Fraction
from itertools import cycle

import numpy as np
import pytest
from reference import sampling as official

from taf_fast.data.views import sampling

CASES = [(n, num_segments) for num_segments in (7, 8, 16) for n in range(1, 131)]
RULES = ("segments", "shared", "interleaved")


class Script:
    """A random source that says what is to be drawn, and remembers the ranges it was asked for."""

    def __init__(self, draws):
        self.draws, self.highs = cycle(draws), set()

    def one(self, high: int) -> int:
        self.highs.add(high)
        return next(self.draws) % high

    def integers(self, high: int, size: int) -> np.ndarray:
        return np.array([self.one(high) for _ in range(size)])


def assert_frames(actual, expected: list[int], n: int) -> None:
    assert actual.dtype == np.int32 and actual.flags.c_contiguous
    assert actual.tolist() == expected
    assert min(expected) >= 0 and max(expected) < n


def official_train(n: int, num_segments: int, rule: str, draws) -> list[int]:
    train = official.tam_train if rule == "shared" else official.tsn_train
    return train(n, num_segments, draws)


@pytest.mark.parametrize("rule", RULES)
def test_training_is_official_for_equal_draws(rule, rng):
    for n, num_segments in CASES:
        draws = rng.integers(0, 10**6, 20).tolist()
        ours, theirs = Script(draws), Script(draws)
        actual = sampling.train_frames(n, num_segments, rule, ours)
        assert_frames(actual, official_train(n, num_segments, rule, theirs.one), n)
        assert ours.highs == theirs.highs


@pytest.mark.parametrize("rule", RULES)
def test_training_can_take_every_frame_of_every_segment(rule):
    """Every place is asked for in turn; the generator draws all of a range alike."""
    for n, num_segments in CASES:
        length = n // num_segments
        if length == 0:
            continue
        taken = [sampling.train_frames(n, num_segments, rule, Script([i])) for i in range(length)]
        expected = np.arange(length * num_segments).reshape(num_segments, length)
        assert np.array_equal(np.stack(taken, axis=1), expected)


@pytest.mark.parametrize(("n", "num_segments"), [(8, 8), (15, 8), (40, 8), (37, 16), (37, 7)])
def test_training_draws_from_whole_segments(n, num_segments, rng):
    length = n // num_segments
    drawn = np.stack([sampling.train_frames(n, num_segments, "segments", rng) for _ in range(60 * length)])
    for segment, column in enumerate(drawn.T):
        assert set(column) == set(range(segment * length, (segment + 1) * length))
    drawn = {tuple(sampling.train_frames(n, num_segments, "shared", rng)) for _ in range(60 * length)}
    assert drawn == {tuple(range(place, n, length)[:num_segments]) for place in range(length)}


@pytest.mark.parametrize("num_segments", [7, 8])
def test_short_clips_repeat_the_first_frame_or_draw_from_all(num_segments, rng):
    for n in range(1, num_segments):
        assert not sampling.train_frames(n, num_segments, "segments", rng).any()
        drawn = np.stack([sampling.train_frames(n, num_segments, "shared", rng) for _ in range(400)])
        assert set(drawn.ravel()) == set(range(n))
        assert (np.diff(drawn) >= 0).all()


def test_validation_is_official():
    for n, num_segments in CASES:
        expected = official.tsn_val(n, num_segments)
        assert_frames(sampling.val_frames(n, num_segments, "segments"), expected, n)
        assert_frames(sampling.val_frames(n, num_segments, "interleaved"), expected, n)
        (expected,) = official.tam_clips(n, num_segments, num_clips=1)
        assert_frames(sampling.val_frames(n, num_segments, "shared"), expected, n)


def test_two_clips_are_official():
    for n, num_segments in CASES:
        expected = {
            "segments": official.tsm_twice(n, num_segments),
            "shared": official.tam_clips(n, num_segments, num_clips=2),
            "interleaved": official.tpn_clips(n, num_segments),
        }
        for rule, clips in expected.items():
            actual = sampling.twice_frames(n, num_segments, rule)
            assert len(actual) == 2
            for frames, clip in zip(actual, clips, strict=True):
                assert_frames(frames, clip, n)


@pytest.mark.parametrize("num_segments", [8, 16])
def test_powers_of_two_sample_without_rounding(num_segments):
    """State the rules in exact fractions of a frame."""

    def at(n, *places):
        return [Fraction(n) * place // (4 * num_segments) for place in places]

    segments = range(num_segments)
    middles, starts = [4 * i + 2 for i in segments], [4 * i for i in segments]
    firsts, lasts = [4 * i + 1 for i in segments], [4 * i + 3 for i in segments]
    for n in range(num_segments + 1, 131):
        for rule in RULES:
            assert sampling.val_frames(n, num_segments, rule).tolist() == at(n, *middles)
        clips = {rule: [c.tolist() for c in sampling.twice_frames(n, num_segments, rule)] for rule in RULES}
        assert clips["segments"] == [at(n, *middles), at(n, *starts)]
        assert clips["interleaved"] == [at(n, *firsts), at(n, *lasts)]
        if n > 2 * num_segments:
            later = [frame + 1 for frame in at(n, *middles)]
        else:  # the last frame that begins in the segment
            later = [-(-n * (i + 1) // num_segments) - 1 for i in segments]
        assert clips["shared"] == [at(n, *middles), later]


def test_tests_and_validation_differ_for_short_clips():
    first, second = sampling.twice_frames(4, 8, "segments")
    assert first.tolist() == [0, 0, 1, 1, 2, 2, 3, 3] == second.tolist()
    assert not sampling.val_frames(4, 8, "segments").any()
    assert not sampling.val_frames(8, 8, "segments").any()
    assert sampling.twice_frames(8, 8, "segments")[0].tolist() == list(range(8))
