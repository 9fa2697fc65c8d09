"""Worker processes deliver what threads do, whatever happens to them, and leave nothing behind."""

import gc
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from data.test_loader import assert_equal, assert_resumes, loader, with_bad_clips

from taf_fast.data import ClipLoader, DataError, EvaluationViews, TrainingView
from taf_fast.data import loader as loaders
from taf_fast.data.decoding import workers as module
from taf_fast.data.decoding.fetch import ClipFetcher
from taf_fast.data.decoding.workers import WorkerFetcher

pytestmark = pytest.mark.slow


def epochs(loading: ClipLoader, count: int = 2) -> list:
    return [batch for _ in range(count) for batch in loading]


def workers() -> list[int]:
    """The ids of the worker processes of this process."""
    return [process.pid for process in multiprocessing.active_children()]


@pytest.fixture(autouse=True)
def nothing_is_left():
    """No worker, no memory of it and no descriptor outlasts its loader."""
    gc.collect()
    before = workers()
    yield
    gc.collect()
    deadline = time.monotonic() + 60
    while set(workers()) - set(before):
        assert time.monotonic() < deadline
        time.sleep(0.01)
        gc.collect()
    assert "memfd:taf_fast" not in Path("/proc/self/maps").read_text()


@pytest.fixture
def soon(monkeypatch):
    """A DataLoader looks after its workers every tenth of a second, not every five."""
    iterator = torch.utils.data.dataloader._MultiProcessingDataLoaderIter
    monkeypatch.setattr(iterator._try_get_data, "__defaults__", (0.1,))


@pytest.mark.parametrize(("number", "batch_size"), [(1, 5), (2, 24), (5, 3)])
def test_batches_are_those_of_threads(mixed, seed, number, batch_size):
    view = TrainingView(flip=True, swap=((0, 1),), colour=True)
    options = dict(seed=seed, view=view, batch_size=batch_size)
    expected = loader(mixed, threads=2, **options)
    loading = loader(mixed, workers=number, **options)
    assert_equal(epochs(loading), epochs(expected))
    assert loading.state_dict() == expected.state_dict()


@pytest.mark.parametrize("number", [1, 4])
def test_evaluation_is_that_of_threads_and_its_workers_end_with_the_epoch(mixed, number):
    options = dict(train=False, batch_size=12, views=EvaluationViews(crops=3, clips=2))
    before = workers()
    loading = loader(mixed, workers=number, **options)
    assert_equal(epochs(loading), epochs(loader(mixed, threads=2, **options)))
    assert workers() == before


def test_workers_stay_over_epochs(clean):
    loading = loader(clean, workers=2)
    list(loading)
    before = workers()
    list(loading)
    assert workers() == before and len(before) >= 2


def test_closed_loaders_have_no_workers_and_go_on(clean, seed):
    expected = epochs(loader(clean, seed=seed, threads=1))
    loading, before = loader(clean, seed=seed, workers=2), workers()
    delivered = [next(iter(loading))]
    for _ in range(2):
        loading.close()
        assert workers() == before
        delivered += list(loading)
    assert_equal(delivered, expected)
    loading.close()
    loader(clean, threads=1).close()


@pytest.mark.parametrize("damaged", [False, True])
def test_resuming(clean, copied_root, damaged, seed):
    manifest = with_bad_clips(copied_root) if damaged else clean
    assert_resumes(manifest, (2, 4) if damaged else (0, 0), seed=seed, workers=2, batch_size=8)


def test_bad_clips_are_those_of_threads(copied_root, seed):
    """With batches of which no clip is good, which others replace."""
    manifest, left = with_bad_clips(copied_root), []
    for option in ({"threads": 2}, {"workers": 2}):
        for train in (True, False):
            loading = loader(manifest, seed=seed, quarantine_limit=1, batch_size=1, train=train, **option)
            left.append((epochs(loading), loading.state_dict()))
    for threads, processes in zip(left[:2], left[2:], strict=True):
        assert_equal(processes[0], threads[0])
        assert processes[1] == threads[1]


def test_leaving_the_loop_and_moving_the_position(clean, seed):
    expected = epochs(loader(clean, seed=seed, threads=1))
    loading, delivered = loader(clean, seed=seed, workers=2), []
    start = loading.state_dict()
    while loading.epoch == 0:
        for batch in loading:
            delivered.append(batch)
            if len(delivered) % 2:
                break
    assert_equal(delivered, expected[:6])
    loading.load_state_dict(start | {"iteration": 2})
    next(iter(loading))
    loading.load_state_dict(start)
    assert_equal(epochs(loading), expected)


def test_global_random_numbers_stay(clean):
    before = torch.get_rng_state()
    epochs(loader(clean, workers=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_stay_intact_while_later_ones_are_decoded(clean):
    loading = loader(clean, workers=2)
    batches = [(batch.clips, batch.clips.clone()) for _ in range(5) for batch in loading]
    assert all(torch.equal(held, copied) for held, copied in batches)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_dies_is_replaced(clean, seed, soon, number):
    loading, delivered = loader(clean, seed=seed, workers=2), []
    expected = epochs(loader(clean, seed=seed, threads=1))
    before = workers()
    with pytest.warns(RuntimeWarning, match="exited unexpectedly: replaced") as warned:
        delivered.append(next(iter(loading)))
        (killed, *_) = set(workers()) - set(before)
        os.kill(killed, number)
        delivered += [*loading, *loading]
    assert str(killed) in str(warned[0].message)
    assert_equal(delivered, expected)


def test_signals_that_ask_the_command_to_stop_do_not_end_its_workers(clean):
    loading, before = loader(clean, workers=2), workers()
    next(iter(loading))
    started = set(workers()) - set(before)
    for process in started:
        assert os.getpgid(process) == process  # signals to the group of the command do not reach it
        os.kill(process, signal.SIGINT)
        os.kill(process, signal.SIGHUP)
    list(loading)
    assert started <= set(workers())


def test_workers_that_die_again_are_an_error_that_names_worker_and_clips(clean, monkeypatch, soon):
    """The loader goes on from there once it is mended."""
    expected = epochs(loader(clean, threads=1), 1)
    loading = loader(clean, workers=1)
    with monkeypatch.context() as patched:
        patched.setattr(module, "_Parts", Crashing)
        crash = r"worker \(pid\(s\) [0-9]+\) exited .* crashes its decoder: "
        with pytest.warns(RuntimeWarning, match="replaced"), pytest.raises(DataError, match=crash) as error:
            next(iter(loading))
    assert expected[0].ids[0] in str(error.value)
    assert_equal(list(loading), expected)


class Crashing(module._Parts):
    def __getitem__(self, part):
        os.kill(os.getpid(), signal.SIGKILL)


def test_an_error_in_a_worker_is_raised_here(clean, monkeypatch):
    monkeypatch.setattr(module, "_Parts", Failing)
    with pytest.raises(ZeroDivisionError, match="DataLoader worker process 0"):
        next(iter(loader(clean, workers=1)))


class Failing(module._Parts):
    def __getitem__(self, part):
        return 1 // 0


def test_too_few_descriptors(clean):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    loading = loader(clean, workers=2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
    try:
        with pytest.raises(DataError, match="2 worker processes cannot be started: Too many open files"):
            next(iter(loading))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(list(loading)) == len(loading)


def test_too_little_memory_to_share(clean):
    """The size of files is limited, too, to which the memory belongs."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    loading = loader(clean, workers=2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(DataError, match="cannot be started: File too large"):
            next(iter(loading))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


SCRIPT = """
import os, signal, sys, time
from taf_fast.data import ClipLoader, Manifest, read_dataset, scan

manifest = scan(read_dataset(sys.argv[1], "train"), quick=True)
loader = ClipLoader(manifest, 8, 32, 4, train=True, workers=2)
batches = iter(loader)
next(batches)
import multiprocessing
print(os.getpid(), *(process.pid for process in multiprocessing.active_children()), flush=True)
if sys.argv[2] == "killed":
    time.sleep(600)
"""


@pytest.mark.parametrize("end", ["killed", "returns"])
def test_workers_end_with_a_script_that_has_no_guard(clean_root, tmp_path, end):
    """Started from a script that is not to be run again in them, and ends in the middle of an epoch."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    semaphores = set(Path("/dev/shm").iterdir())
    process = subprocess.Popen([sys.executable, script, clean_root, end], stdout=subprocess.PIPE, text=True)
    main, *others = map(int, process.stdout.readline().split())
    assert len(others) == 2
    if end == "killed":
        os.kill(main, signal.SIGKILL)
    assert process.communicate(timeout=60)[0] == "" and process.returncode == (-9 if end == "killed" else 0)
    deadline = time.monotonic() + 60
    while any(map(alive, others)) or set(Path("/dev/shm").iterdir()) - semaphores:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def alive(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


def test_the_default_is_the_cpus_that_may_be_used_but_threads_for_few_clips(clean, monkeypatch):
    monkeypatch.setattr(loaders, "usable_cpus", lambda: 3)
    few = loader(clean)._fetcher
    assert isinstance(few, ClipFetcher) and few._renderers._max_workers == 3
    monkeypatch.setattr(loaders, "FEW_CLIPS", 24)
    many = loader(clean)._fetcher
    assert isinstance(many, WorkerFetcher) and many._workers == 3
    assert isinstance(loader(clean, world_size=2)._fetcher, ClipFetcher)
    assert isinstance(loader(clean, threads=2)._fetcher, ClipFetcher)
    monkeypatch.setattr(loaders, "usable_cpus", lambda: 200)
    assert loader(clean)._fetcher._workers == 64
    with pytest.raises(ValueError, match="workers must be none with 2 threads, got 1"):
        loader(clean, threads=2, workers=1)
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        loader(clean, workers=0)


@pytest.mark.parametrize(("number", "batch_size", "batches"), [(1, 4, 3), (2, 4, 3), (3, 2, 4), (3, 1, 7)])
def test_no_batch_is_decoded_where_another_still_is(clean, monkeypatch, number, batch_size, batches):
    """The memory is that of the batches that can be under way while one is copied, and of no more."""
    given, ahead, upcoming, fetched = [], [], module._Upcoming.__next__, WorkerFetcher._fetched

    def giving(self):
        given.append(upcoming(self))
        return given[-1]

    def copying(self, *arguments):
        ahead.append(given[-1].number - len(ahead))
        return fetched(self, *arguments)

    monkeypatch.setattr(module._Upcoming, "__next__", giving)
    monkeypatch.setattr(WorkerFetcher, "_fetched", copying)
    loading = loader(clean, workers=number, batch_size=batch_size)
    list(loading)
    assert len(ahead) == 24 // batch_size and max(ahead) == batches - 1
    assert loading._fetcher._shape == (batches, batch_size, 8, 32, 32, 3)
