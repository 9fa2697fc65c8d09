"""From planned clips to pixels, in the background: bad clips come back as reasons, never as exceptions."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from taf_fast.data.errors import DataError
from taf_fast.data.scanning.manifest import Clip
from taf_fast.data.views.planner import ClipPlan

from .render import render


@dataclass(frozen=True)
class Fetched:
    """Clips that could be read: uint8 ``[len(rows), T, size, size, 3]`` (None without any), their rows in the
    request in ascending order, and the reason of every other row."""

    clips: torch.Tensor | None
    rows: list[int]
    failures: dict[int, str]


class ClipFetcher:
    """Decodes every clip by PyAV or PIL in one of ``threads`` threads, straight to its place in the batch.

    ``pin_memory``: batches lie in page-locked memory, from which copies to a GPU can overlap with its work.
    """

    def __init__(self, size: int, threads: int, pin_memory: bool = False):
        self._size = size
        self._pin_memory = pin_memory
        self._renderers = ThreadPoolExecutor(threads)
        self._collecting = ThreadPoolExecutor(1)

    def submit(self, clips: list[Clip], plans: list[ClipPlan]) -> "Future[Fetched]":
        """Starts on a batch; batches are finished in the order of submission."""
        num_segments = len(plans[0].frames) if plans else 0
        shape = (len(clips), num_segments, self._size, self._size, 3)
        pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=self._pin_memory)
        renders = [
            self._renderers.submit(render, *request) for request in zip(clips, plans, pixels, strict=True)
        ]
        return self._collecting.submit(_collect, pixels, renders)


def _collect(pixels: torch.Tensor, renders: list[Future]) -> Fetched:
    failures: dict[int, str] = {}
    for row, future in enumerate(renders):
        try:
            future.result()
        except DataError as error:
            failures[row] = str(error)
    rows = [row for row in range(len(renders)) if row not in failures]
    if failures:
        pixels = pixels[rows]
    return Fetched(pixels if rows else None, rows, failures)
