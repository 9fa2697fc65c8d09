"""Decoding in worker processes, which do not take the time of the thread that launches training steps."""

import contextlib
import errno
import itertools
import math
import mmap
import os
import resource
import warnings
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.reduction import DupFd
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from taf_fast.data import fork_server
from taf_fast.data.clip import Clip
from taf_fast.data.decoding.decode import render
from taf_fast.data.decoding.fetch import AHEAD, Fetched, Request, empty_clips
from taf_fast.data.views.planner import ClipPlan
from taf_fast.errors import DataError

# What the DataLoader says of a worker that is gone; errors in a worker keep their own types.
_GONE = "DataLoader worker (pid"


class WorkerFetcher:
    """The :class:`~taf_fast.data.decoding.fetch.Fetcher` of PyAV and PIL in ``workers`` processes, the
    workers of a DataLoader, for batches of at most ``rows`` clips of ``num_segments`` frames of ``size`` x
    ``size`` pixels.

    Each worker decodes a part of each batch, straight into memory that all of them share, from which a thread
    of this process copies whole batches; with ``pin_memory`` to page-locked memory. The workers start at the
    first batch and end with the fetcher, or, unless ``keep``, with the last batch.

    A worker that ends unexpectedly is replaced with a warning, and the batches under way are decoded again.
    DataError if a worker ends again before another batch is decoded, or if they cannot be started.
    """

    def __init__(
        self,
        rows: int,
        num_segments: int,
        size: int,
        workers: int,
        pin_memory: bool = False,
        keep: bool = True,
    ):
        self._workers = workers
        self._keep = keep
        self._pin_memory = pin_memory
        # All batches have as many parts, so that the number of parts under way limits that of batches.
        self._parts = min(workers, rows)
        self._shape = (math.ceil(AHEAD * workers / self._parts) + 1, rows, num_segments, size, size, 3)
        self._upcoming: Iterator[_Part] = iter(())
        self._running: list[tuple[DataLoader, _SharedMemory]] = []
        weakref.finalize(self, _end, self._running).atexit = False  # by then workers end anyway
        self._collecting = ThreadPoolExecutor(1)
        with contextlib.suppress(OSError):  # starting the workers tells
            fork_server.warm_up()

    def fetch(self, requests: Iterator[Request]) -> Iterator[tuple[Request, Fetched]]:
        batches = self._batches(requests)
        following = self._collecting.submit(next, batches, None)
        try:
            while (batch := following.result()) is not None:
                following = self._collecting.submit(next, batches, None)
                yield batch
        finally:
            following.cancel()

    def close(self) -> None:
        """Ends the workers, after the batch that they are at; the next requests start others."""
        self._collecting.submit(_end, self._running).result()

    def _batches(self, requests: Iterator[Request]) -> Iterator[tuple[Request, Fetched]]:
        begun: deque[Request] = deque()
        replaced = False
        while True:
            again, begun = begun, deque()
            self._upcoming = self._divided(itertools.chain(again, requests), begun)
            try:
                results, memory = self._results()
                for number in itertools.count():
                    parts = list(itertools.islice(results, self._parts))
                    if not parts:
                        break
                    request = begun.popleft()
                    failures = {row: reason for part in parts for row, reason in part.items()}
                    yield request, self._fetched(memory.batch(number)[: len(request.clips)], failures)
                    replaced = False
                if not self._keep:
                    _end(self._running)
                return
            except RuntimeError as error:
                if _GONE not in str(error):
                    raise
                _end(self._running)
                if replaced:
                    raise DataError(_lost(str(error), begun)) from None
                warnings.warn(f"{error}: replaced", RuntimeWarning, stacklevel=1)
                replaced = True

    def _results(self) -> "tuple[Iterator[dict[int, str]], _SharedMemory]":
        """What comes of the parts at hand, in their order, and where their clips are."""
        try:
            if not self._running:
                _require_descriptors(self._workers)
                # Workers that were given up may still write into the memory that they had.
                memory = _SharedMemory(self._shape)
                loader = DataLoader(
                    _Parts(memory),
                    batch_size=None,
                    sampler=_Upcoming(self),
                    num_workers=self._workers,
                    prefetch_factor=AHEAD,
                    persistent_workers=True,
                    multiprocessing_context=fork_server.CONTEXT,
                    worker_init_fn=_begin,
                    collate_fn=_as_it_is,
                    generator=torch.Generator(),  # it would draw from the global one
                )
                self._running.append((loader, memory))
            ((loader, memory),) = self._running
            with fork_server.starting():
                return iter(loader), memory
        except (OSError, EOFError) as error:
            _end(self._running)
            reason = getattr(error, "strerror", None) or error
            raise DataError(
                f"{self._workers} worker processes cannot be started: {reason}; fewer --workers need less, "
                "and --threads need none"
            ) from error

    def _divided(self, requests: Iterable[Request], begun: deque[Request]) -> "Iterator[_Part]":
        """The parts of all requests, which are appended to ``begun``."""
        for number, request in enumerate(requests):
            begun.append(request)
            for first in range(self._parts):
                rows = range(first, len(request.clips), self._parts)
                clips, plans = request.clips[first :: self._parts], request.plans[first :: self._parts]
                yield _Part(number, rows, clips, plans)

    def _fetched(self, decoded: torch.Tensor, failures: dict[int, str]) -> Fetched:
        rows = [row for row in range(len(decoded)) if row not in failures]
        clips = empty_clips((len(rows), *decoded.shape[1:]), self._pin_memory)
        # NumPy copies: PyTorch would start threads for it, which get in the way of the training step's.
        np.copyto(clips.numpy(), decoded.numpy()[rows] if failures else decoded.numpy())
        return Fetched(clips, rows, dict(sorted(failures.items())))


class _Upcoming:
    """The sampler of the DataLoader: the parts of a fetcher's requests, which it does not keep alive."""

    def __init__(self, fetcher: WorkerFetcher):
        self._fetcher = weakref.ref(fetcher)

    def __iter__(self) -> "_Upcoming":
        return self

    def __next__(self) -> "_Part":
        fetcher = self._fetcher()
        return next(fetcher._upcoming if fetcher else iter(()))


class _Part(NamedTuple):
    """Some rows of the batch ``number``."""

    number: int
    rows: Sequence[int]
    clips: list[Clip]
    plans: list[ClipPlan]


class _Parts(Dataset[dict[int, str]]):
    """What the workers do: decode a part into its place; the reasons of clips that cannot be decoded, by
    row."""

    def __init__(self, memory: "_SharedMemory"):
        self._memory = memory

    def __getitem__(self, part: _Part) -> dict[int, str]:
        failures = {}
        for row, clip, plan in zip(part.rows, part.clips, part.plans, strict=True):
            try:
                render(clip, plan, self._memory.batch(part.number)[row])
            except DataError as error:
                failures[row] = str(error)
        return failures


class _SharedMemory:
    """The batches under way, uint8 ``[batches, rows, T, size, size, 3]``, in this process and those it
    starts.

    The memory has no name that would outlast a kill, and does not count towards the size of /dev/shm.
    """

    def __init__(self, shape: tuple[int, ...]):
        self._shape = shape
        file = os.memfd_create("taf_fast")
        weakref.finalize(self, os.close, file)
        os.truncate(file, math.prod(shape))
        self._map(file)

    def _map(self, file: int) -> None:
        self._file = file
        self._batches = torch.from_numpy(np.frombuffer(mmap.mmap(file, 0), np.uint8)).view(self._shape)

    def __getstate__(self) -> dict:
        return {"shape": self._shape, "file": DupFd(self._file)}

    def __setstate__(self, state: dict) -> None:
        self._shape = state["shape"]
        file = state["file"].detach()
        self._map(file)

    def batch(self, number: int) -> torch.Tensor:
        """The place of the batch ``number``, counted on without end."""
        return self._batches[number % len(self._batches)]


def _require_descriptors(workers: int) -> None:
    """OSError if starting ``workers`` would run out of them, which the DataLoader does not clean up after."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The ends of two pipes for each, and what all have in common.
    if len(os.listdir("/proc/self/fd")) + 4 * workers + 20 > limit:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def _end(running: "list[tuple[DataLoader, _SharedMemory]]") -> None:
    """End the workers now: among garbage, where the DataLoader leaves it to its iterator, what tells them may
    be gone already."""
    while running:
        iterator: Any = running.pop()[0]._iterator
        if iterator is not None:
            iterator._shutdown_workers()


def _begin(worker: int) -> None:
    os.setsid()  # what stops the command, such as SIGTERM to its group, waits for the batch that it trains on
    fork_server.started()


def _as_it_is(failures: Any) -> Any:
    return failures


def _lost(error: str, begun: Iterable[Request]) -> str:
    ids = list(dict.fromkeys(clip.id for request in begun for clip in request.clips))
    more = f" and {len(ids) - 10} more" if len(ids) > 10 else ""
    return (
        f"{error}, like one before it: there is too little memory for that many --workers, or one of these "
        f"clips crashes its decoder: {', '.join(ids[:10])}{more}"
    )
