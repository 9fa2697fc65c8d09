"""Seeds, fresh every run, shown when a test fails and repeatable with TAF_FAST_SEED; what scans look at."""

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


@pytest.fixture
def probed(monkeypatch) -> list[str]:
    """The names of the files and folders that a scan looks at, in this process."""
    # Not every machine that runs the tests of ops can read video.
    from taf_fast.data.scanning import manifest

    names, probe = [], manifest.probe
    monkeypatch.setattr(
        manifest, "probe", lambda path, *rest: (names.append(path.name), probe(path, *rest))[1]
    )
    return names
