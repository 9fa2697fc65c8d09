"""A tiny synthetic data set, real clips, and independent decoding."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from taf_fast.data import Manifest, read_dataset, read_ssv2, scan
from taf_fast.data.synth import write_diving48, write_ssv1, write_ssv2

NUM_SEGMENTS = 8


@pytest.fixture
def rng(seed) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(params=["pyav", "dali"])
def decoder(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def clean_root(tmp_path_factory) -> Path:
    """24 training and 16 validation clips of 10 to 20 frames at 96x72. Read only."""
    root = tmp_path_factory.mktemp("ssv2") / "clean"
    write_ssv2(root, train_per_class=3, val_per_class=2, size=(96, 72), frames=(10, 20), seed=5)
    return root


@pytest.fixture(scope="session")
def clean(clean_root):
    """The manifest of the training split."""
    return scan(read_ssv2(clean_root, "train"))


@pytest.fixture(scope="session")
def roots(clean_root) -> dict[str, Path]:
    """The same data set in every format, by its name. Read only."""
    roots = {"ssv2": clean_root, "ssv1": clean_root.parent / "ssv1", "diving48": clean_root.parent / "d48"}
    sizes = dict(train_per_class=3, val_per_class=2, size=(96, 72), frames=(10, 20), seed=5)
    write_ssv1(roots["ssv1"], **sizes)
    write_diving48(roots["diving48"], **sizes)
    return roots


def merge(roots: dict[str, Path]) -> Manifest:
    """Eight training clips of every format in turn; ids are <format>-<id>."""
    manifests = {name: scan(read_dataset(root, "train")) for name, root in roots.items()}
    clips = [
        replace(manifest.clips[i], id=f"{name}-{manifest.clips[i].id}")
        for i in range(8)
        for name, manifest in manifests.items()
    ]
    return Manifest(manifests["ssv2"].classes, tuple(clips))


@pytest.fixture(scope="session")
def mixed(roots) -> Manifest:
    """A manifest with 24 clips of all formats. Read only."""
    return merge(roots)


@pytest.fixture
def copied_mixed(roots, tmp_path) -> Manifest:
    """The same clips, in copies to damage."""
    return merge({name: shutil.copytree(root, tmp_path / name) for name, root in roots.items()})


@pytest.fixture
def copied_root(clean_root, tmp_path) -> Path:
    """A copy of the data set to damage."""
    return shutil.copytree(clean_root, tmp_path / "copy")


@pytest.fixture
def real_clip():
    """Return the path of a real clip by name; skip if there is none."""
    beside = Path(__file__).parents[2].parent / "shared" / "data" / "videos"
    folder = Path(os.environ.get("TAF_FAST_TEST_VIDEOS", beside))

    def find(name: str) -> Path:
        if not (folder / name).is_file():
            pytest.skip(f"real clip {name} is not in TAF_FAST_TEST_VIDEOS")
        return folder / name

    return find


@pytest.fixture
def by_id():
    """Clips by id of everything a loader delivers up to the end of its epoch."""

    def collect(loader) -> dict[str, torch.Tensor]:
        return {name: clip for batch in loader for name, clip in zip(batch.ids, batch.clips, strict=True)}

    return collect


@pytest.fixture
def assert_same_clips():
    def compare(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
        assert actual.keys() == expected.keys()
        different = [name for name in actual if not torch.equal(actual[name], expected[name])]
        assert not different

    return compare
