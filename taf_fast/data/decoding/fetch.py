"""From planned clips to pixels in the background: bad clips come back as reasons, never as exceptions."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch

from taf_fast.data.clip import Clip
from taf_fast.data.decoding.decode import render
from taf_fast.data.views.planner import ClipPlan
from taf_fast.errors import DataError


@dataclass(frozen=True)
class Fetched:
    """The clips of a request that could be decoded: uint8 ``[len(rows), T, size, size, 3]`` (RGB), their rows
    in the request in ascending order, and the reason of every other row."""

    clips: torch.Tensor
    rows: list[int]
    failures: dict[int, str]


class Fetcher(Protocol):
    """Decodes batches of clips in background threads."""

    def submit(self, clips: list[Clip], plans: list[ClipPlan]) -> Future[Fetched]:
        """Starts decoding a batch; batches finish in the order in which they were submitted."""
        ...


class ClipFetcher:
    """The :class:`Fetcher` of PyAV and PIL: each of ``threads`` threads decodes one clip at a time, straight
    into its place in the batch.

    With ``pin_memory`` batches lie in page-locked memory, from which copies to a GPU can overlap with its
    work.
    """

    def __init__(self, size: int, threads: int, pin_memory: bool = False):
        self._size = size
        self._pin_memory = pin_memory
        self._renderers = ThreadPoolExecutor(threads)
        self._collecting = ThreadPoolExecutor(1)

    def submit(self, clips: list[Clip], plans: list[ClipPlan]) -> Future[Fetched]:
        num_segments = len(plans[0].frames) if plans else 0
        shape = (len(clips), num_segments, self._size, self._size, 3)
        pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=self._pin_memory)
        renders = [
            self._renderers.submit(render, clip, plan, out)
            for clip, plan, out in zip(clips, plans, pixels, strict=True)
        ]
        return self._collecting.submit(_collect, pixels, renders)


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
