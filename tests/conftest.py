"""Fixed seeds, the marks of the suite, a small data set and runs on it, and the command line.

Every test has a seed of its own, the same every time; ``TAF_FAST_SEED`` gives all of them another one.
taf_fast is imported inside the fixtures: not every machine that runs the tests of ops can read video.
"""

import os
import random
import zlib
from functools import partial

# Workers of pytest-xdist share the cores: one thread each, for them and for the processes they start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

GIVEN_SEED = os.environ.get("TAF_FAST_SEED")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    if not config.pluginmanager.hasplugin("hypothesispytest"):
        return
    from hypothesis import settings

    # Timings never decide a test.
    settings.register_profile("taf_fast", deadline=None, derandomize=GIVEN_SEED is None)
    settings.load_profile("taf_fast")
    config.option.hypothesis_seed = GIVEN_SEED


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no GPU")


@pytest.fixture(autouse=True)
def seed(request) -> int:
    """The seed of the test, from which the global generators start too."""
    seed = int(GIVEN_SEED or zlib.crc32(request.node.nodeid.encode()) % 2**31)
    print(f"TAF_FAST_SEED={seed}")  # captured, so it appears in the report of a failing test
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return seed


@pytest.fixture
def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def uncompiled_graphs(monkeypatch) -> None:
    """torch.compile captures graphs and runs them as they are: Inductor takes many times longer."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


@pytest.fixture
def probed(monkeypatch) -> list[str]:
    """The names of the files and folders that a scan looks at, in this process."""
    from taf_fast.data.scanning import manifest

    names, probe = [], manifest.probe
    monkeypatch.setattr(
        manifest, "probe", lambda path, *rest: (names.append(path.name), probe(path, *rest))[1]
    )
    return names


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """8 classes, 24 training and 8 validation videos of 48 x 36 pixels: trained on in seconds. Read only."""
    from taf_fast.data.synth import write_ssv2

    root = tmp_path_factory.mktemp("dataset") / "ssv2"
    write_ssv2(root, train_per_class=3, val_per_class=1, size=(48, 36), frames=(12, 16), seed=3)
    return root


@pytest.fixture(scope="session")
def runs(dataset, tmp_path_factory):
    """A baseline of two epochs and one fine-tuned with TAF, on frames of 64 pixels (of which features have
    2 x 2): the folders of the runs. Read only."""
    from taf_fast.run.config import FinetuneConfig
    from taf_fast.run.finetune import finetune

    folder = tmp_path_factory.mktemp("runs")
    common = dict(data=str(dataset), model="tsm_resnet18", size=64, batch_size=8, lr=0.01)
    baseline = FinetuneConfig(out=str(folder / "baseline"), augment="none", epochs=2, **common)
    weights = finetune(baseline).weights
    finetune(FinetuneConfig(out=str(folder / "taf"), checkpoint=str(weights), epochs=1, **common))
    return folder / "baseline", folder / "taf"


@pytest.fixture
def output(capsys, monkeypatch):
    """The command line in this process: what it printed."""
    from run_command import output_of

    return partial(output_of, capsys, monkeypatch)


@pytest.fixture
def error(capsys, monkeypatch):
    """The command line in this process, where it must fail: its error."""
    from run_command import error_of

    return partial(error_of, capsys, monkeypatch)
