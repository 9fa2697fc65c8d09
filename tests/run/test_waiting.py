"""A run that waits for its data says so once, and what would help."""

import itertools
from types import SimpleNamespace

import pytest

from taf_fast.data import ClipLoader, loader, read_dataset, scan
from taf_fast.data.cache.write import write_cache
from taf_fast.run import training, waiting
from taf_fast.run.config import FinetuneConfig
from taf_fast.run.finetune import finetune
from taf_fast.run.waiting import Waiting


@pytest.fixture
def videos(dataset):
    return ClipLoader(scan(read_dataset(dataset, "train"), quick=True), 8, 32, 4, train=True)


def config(**options) -> FinetuneConfig:
    return FinetuneConfig(**{"data": "d", "out": "o"} | options)


def line(videos, waits, epochs=1, **options) -> list[str | None]:
    """What is said after each of ``epochs``, whose steps take a second and wait for ``waits``."""
    counting = Waiting()
    said = []
    for _ in range(epochs):
        for waited in waits:
            counting.add(waited, 1.0)
        said.append(counting.end_epoch(config(**options), videos))
    return said


def test_the_limit_is_a_twentieth_of_the_time_after_the_first_steps(videos):
    first = [100.0] * waiting.FIRST_STEPS
    twentieth = 1 / 19
    assert line(videos, first + [0.999 * twentieth] * 40) == [None]
    (said,) = line(videos, first + [1.001 * twentieth] * 40)
    assert said.startswith("waited for clips 5 % of the epoch: ")
    (said,) = line(videos, first + [0.0, 1.0] * 20)
    assert said.startswith("waited for clips 33 % of the epoch: ")
    assert line(videos, first + [100.0] * (waiting.LEAST_STEPS - 1)) == [None]


def test_it_is_said_once_of_the_first_epoch_that_waits(videos):
    counting, said = Waiting(), []
    for waited in (0.0, 1.0, 1.0):
        for _ in range(40):
            counting.add(waited, 1.0)
        said.append(counting.end_epoch(config(), videos))
    assert [text is not None for text in said] == [False, True, False]
    assert "50 %" in said[1]


def test_what_would_help(videos, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(waiting, "usable_cpus", lambda: 4)
    splits = [(read_dataset(dataset, "train"), videos.manifest.clips)]
    list(write_cache(tmp_path / "cache", splits, 1))
    cached = ClipLoader(scan(read_dataset(tmp_path / "cache", "train")), 8, 32, 4, train=True)

    def help(videos, **options):
        (said,) = line(videos, [1.0] * 40, **options)
        return said.partition(" of the epoch: ")[2]

    cache, gpu = "a decoded cache (taf-fast scan --cache)", "--decoder mixed, which decodes videos on the GPU"
    more = "more --workers than 2 (this process may use 4 CPUs)"
    processes = "--workers instead of --threads (this process may use 4 CPUs)"
    assert help(videos) == f"what would help is {cache}"
    assert help(videos, workers=2) == f"what would help is {more}, or {cache}"
    assert help(videos, workers=4) == f"what would help is {cache}"
    assert help(videos, threads=2) == f"what would help is {processes}, or {cache}"
    assert help(videos, threads=2, decoder="dali") == f"what would help is {more}, or {cache}"
    assert help(videos, device="cuda") == f"what would help is {cache}, or {gpu}"
    assert help(videos, device="cuda", decoder="mixed") == f"what would help is {cache}"
    assert help(cached, workers=2) == f"what would help is {more}"
    assert help(cached) == "it would take more CPUs to decode them"


@pytest.mark.slow
@pytest.mark.parametrize("slow", [True, False])
def test_a_run_with_a_slow_loader(dataset, tmp_path, capsys, monkeypatch, slow):
    """Each look at the clock is a second later than the one before, in the loader only if it is slow."""
    monkeypatch.setattr(waiting, "FIRST_STEPS", 1)
    monkeypatch.setattr(waiting, "LEAST_STEPS", 2)
    seconds = itertools.count()
    moment = SimpleNamespace(perf_counter=lambda: next(seconds) if slow else 0)
    steps = itertools.count()
    monkeypatch.setattr(loader, "time", moment)
    clock = SimpleNamespace(**vars(training.time) | {"perf_counter": lambda: next(steps)})
    monkeypatch.setattr(training, "time", clock)
    options = dict(augment="none", model="tsm_resnet18", size=32, batch_size=8, epochs=2, lr=0.01)
    finetune(config(data=str(dataset), out=str(tmp_path / "run"), **options))
    said = [text for text in capsys.readouterr().out.splitlines() if "waited for clips" in text]
    assert [text.partition(":")[0] for text in said] == (["run epoch 1/2"] if slow else [])
    assert all(" % of the epoch: what would help is " in text for text in said)
