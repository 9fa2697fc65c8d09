"""From planned clips to pixels, in the background: bad clips come back as reasons, never as exceptions."""

import re
from collections.abc import Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from .colour import apply_colours
from .errors import DataError, different_size
from .manifest import Clip
from .pipeline import ClipDecoder
from .planner import ClipPlan
from .sources import VIDEO, kind, read


@dataclass(frozen=True)
class Fetched:
    """Clips that could be read: uint8 ``[len(rows), T, size, size, 3]`` (None without any), their rows in the
    request in ascending order, and the reason of every other row."""

    clips: torch.Tensor | None
    rows: list[int]
    failures: dict[int, str]


@dataclass(frozen=True)
class _Request:
    """A batch under way; the reads are those of the rows."""

    clips: list[Clip]
    plans: list[ClipPlan]
    reads: list[Future]


class ClipFetcher:
    """Reads clips of ``kinds`` in ``threads`` threads and decodes them batch by batch, in the order of
    submission."""

    def __init__(self, kinds: Set[str], size: int, batch_size: int, threads: int):
        self._batch = {kind: ClipDecoder(kind, size, batch_size, threads) for kind in kinds}
        self._single = {kind: ClipDecoder(kind, size, batch_size=1, threads=1) for kind in kinds}
        self._readers = ThreadPoolExecutor(threads)
        self._decoding = ThreadPoolExecutor(1)

    def submit(self, clips: list[Clip], plans: list[ClipPlan]) -> "Future[Fetched]":
        """Starts reading a batch of at most ``batch_size`` clips."""
        reads = [self._readers.submit(read, clip, plan) for clip, plan in zip(clips, plans, strict=True)]
        return self._decoding.submit(self._decode, _Request(clips, plans, reads))

    def _decode(self, request: _Request) -> Fetched:
        sources: dict[str, dict[int, np.ndarray]] = {}
        failures: dict[int, str] = {}
        for row, (clip, future) in enumerate(zip(request.clips, request.reads, strict=True)):
            try:
                source = future.result()
            except DataError as error:
                failures[row] = str(error)
            else:
                sources.setdefault(kind(clip), {})[row] = source
        parts = [self._decode_kind(name, request, rows, failures) for name, rows in sources.items()]
        parts = [(rows, pixels) for rows, pixels in parts if rows]
        rows = [row for rows, _ in parts for row in rows]
        if not rows:
            return Fetched(None, [], failures)
        pixels = torch.cat([part for _, part in parts]) if len(parts) > 1 else parts[0][1]
        if rows != sorted(rows):
            pixels = pixels[np.argsort(rows)]
            rows.sort()
        for index, row in enumerate(rows):
            colours = request.plans[row].colours
            if colours is not None:
                pixels[index] = apply_colours(pixels[index], colours)
        return Fetched(pixels, rows, failures)

    def _decode_kind(
        self, name: str, request: _Request, sources: dict[int, np.ndarray], failures: dict[int, str]
    ) -> tuple[list[int], torch.Tensor | None]:
        """Rows and pixels of the clips that can be decoded; notes the reasons of the others."""
        try:
            rows = list(sources)
            pixels, sizes = self._batch[name](list(sources.values()), [request.plans[row] for row in rows])
        except RuntimeError:
            # DALI does not say which clip it was.
            rows, pixels, sizes = self._decode_singly(name, request, sources, failures)
        # A file can hold other frames than the scan saw: its crop would be another one.
        for row, found in zip(rows, sizes, strict=True):
            expected = (request.clips[row].height, request.clips[row].width)
            if name == VIDEO and tuple(found) != expected:
                failures[row] = different_size(found, expected)
        good = [index for index, row in enumerate(rows) if row not in failures]
        if len(good) < len(rows):
            pixels = pixels[good]
        return [rows[index] for index in good], pixels

    def _decode_singly(
        self, name: str, request: _Request, sources: dict[int, np.ndarray], failures: dict[int, str]
    ) -> tuple[list[int], torch.Tensor | None, np.ndarray]:
        """Decodes the clips that can be, noting the reasons of the others in ``failures``."""
        results = {}
        for row, source in sources.items():
            try:
                results[row] = self._single[name]([source], [request.plans[row]])
            except RuntimeError as error:
                failures[row] = _reason(error)
        if not results:
            return [], None, np.empty((0, 2))
        pixels, sizes = zip(*results.values(), strict=True)
        return list(results), torch.cat(pixels), np.concatenate(sizes)


def _reason(error: RuntimeError) -> str:
    """The one sentence of DALI's message that is about the clip."""
    text = str(error).rpartition("encountered:\n\n")[2].partition("\nC++ context")[0]
    return "cannot be decoded: " + re.sub(r'^Assert on ".*" failed: ', "", text).split(". ")[0].strip()
