"""From planned clips to pixels in the background: bad clips come back as reasons, never as exceptions."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from taf_fast.data.clip import Clip
from taf_fast.data.decoding.decode import render
from taf_fast.data.views.planner import ClipPlan
from taf_fast.errors import DataError

# Batches being decoded while the caller works on one.
AHEAD = 2


@dataclass(frozen=True)
class Request:
    """A batch to be decoded: the clip and the view of it for each row."""

    clips: list[Clip]
    plans: list[ClipPlan]


@dataclass(frozen=True)
class Fetched:
    """The clips of a request that could be decoded: uint8 ``[len(rows), T, size, size, 3]`` (RGB), their rows
    in the request in ascending order, and the reason of every other row."""

    clips: torch.Tensor
    rows: list[int]
    failures: dict[int, str]


class Fetcher(Protocol):
    """Decodes batches of clips in the background."""

    def fetch(self, requests: Iterator[Request]) -> Iterator[tuple[Request, Fetched]]:
        """Each of ``requests``, in their order, when it is decoded; ``AHEAD`` others are under way by then.

        The caller may give an iteration up for another one.
        """
        ...


class ClipFetcher:
    """The :class:`Fetcher` of PyAV and PIL in this process: each of ``threads`` threads decodes one clip at a
    time, straight into its place in the batch.

    With ``pin_memory`` batches lie in page-locked memory, from which copies to a GPU can overlap with its
    work.
    """

    def __init__(self, size: int, threads: int, pin_memory: bool = False):
        self._size = size
        self._pin_memory = pin_memory
        self._renderers = ThreadPoolExecutor(threads)
        self._collecting = ThreadPoolExecutor(1)

    def fetch(self, requests: Iterator[Request]) -> Iterator[tuple[Request, Fetched]]:
        return in_order(self.submit, requests)

    def submit(self, clips: list[Clip], plans: list[ClipPlan]) -> Future[Fetched]:
        """Starts decoding a batch; batches finish in the order in which they were submitted."""
        num_segments = len(plans[0].frames) if plans else 0
        shape = (len(clips), num_segments, self._size, self._size, 3)
        pixels = empty_clips(shape, self._pin_memory)
        renders = [
            self._renderers.submit(render, clip, plan, out)
            for clip, plan, out in zip(clips, plans, pixels, strict=True)
        ]
        return self._collecting.submit(_collect, pixels, renders)


def empty_clips(shape: tuple[int, ...], pin_memory: bool) -> torch.Tensor:
    """Memory for the clips of a batch, uint8 of ``shape``; with ``pin_memory`` page-locked."""
    if pin_memory:
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
    # NumPy asks for huge pages, which Linux hands out and clears in a third of the time.
    return torch.from_numpy(np.empty(shape, np.uint8))


def in_order(
    submit: Callable[[list[Clip], list[ClipPlan]], Future[Fetched]], requests: Iterator[Request]
) -> Iterator[tuple[Request, Fetched]]:
    """The :meth:`Fetcher.fetch` of a function that starts decoding a batch."""
    begun: deque[tuple[Request, Future[Fetched]]] = deque()
    try:
        for request in requests:
            begun.append((request, submit(request.clips, request.plans)))
            if len(begun) > AHEAD:
                request, fetched = begun.popleft()
                yield request, fetched.result()
        while begun:
            request, fetched = begun.popleft()
            yield request, fetched.result()
    finally:
        for _, fetched in begun:
            fetched.cancel()


def _collect(pixels: torch.Tensor, renders: list[Future[None]]) -> Fetched:
    failures: dict[int, str] = {}
    for row, future in enumerate(renders):
        try:
            future.result()
        except DataError as error:
            failures[row] = str(error)
    # Only these rows have been written.
    rows = [row for row in range(len(renders)) if row not in failures]
    return Fetched(pixels[rows] if failures else pixels, rows, failures)
