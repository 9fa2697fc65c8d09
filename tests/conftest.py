"""Seeds: fresh every run, shown when a test fails, repeatable with TAF_FAST_SEED."""

import os
import random

import pytest
import torch


@pytest.fixture
def seed() -> int:
    seed = int(os.environ.get("TAF_FAST_SEED", random.SystemRandom().randrange(2**31)))
    print(f"TAF_FAST_SEED={seed}")  # captured, so it appears in the report of a failing test
    return seed


@pytest.fixture
def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
