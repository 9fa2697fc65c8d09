"""A test draws the same numbers every time, whatever ran before it."""

import os
import random

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.skipif("TAF_FAST_SEED" in os.environ, reason="TAF_FAST_SEED gives another seed")


def test_seeds_are_fixed(seed, generator):
    assert seed == 815470238
    assert torch.rand(1, generator=generator).item() == torch.rand(1).item()
    assert random.random() == random.Random(seed).random()
    assert np.random.random() == np.random.RandomState(seed).random()


@pytest.mark.parametrize("same", [1, 2])
def test_every_test_has_its_own(seed, same):
    assert seed == {1: 2045303414, 2: 1388677557}[same]
