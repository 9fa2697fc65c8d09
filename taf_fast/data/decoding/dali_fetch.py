"""Fetching clips through DALI, which decodes what its build can and resizes what PyAV and PIL decode."""

import re
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from taf_fast.data.errors import DataError, different_size
from taf_fast.data.scanning.manifest import Clip
from taf_fast.data.views.colour import apply_colours
from taf_fast.data.views.planner import ClipPlan

from .dali_graph import ClipDecoder
from .dali_sources import VIDEO, kind, read
from .fetch import Fetched


@dataclass(frozen=True)
class _Request:
    """A batch under way; the reads are those of the rows."""

    clips: list[Clip]
    plans: list[ClipPlan]
    reads: list[Future]


class DaliFetcher:
    """What ClipFetcher (``fetch.py``) does, for ``clips`` and at most ``batch_size`` at once,
    on the CPU or, with a ``device_id``, on that GPU."""

    def __init__(
        self, clips: Iterable[Clip], size: int, batch_size: int, threads: int, device_id: int | None = None
    ):
        self._kind = partial(kind, on_gpu=device_id is not None)
        kinds = set(map(self._kind, clips))
        self._batch = {name: ClipDecoder(name, size, batch_size, threads, device_id) for name in kinds}
        self._single = {name: ClipDecoder(name, size, 1, 1, device_id) for name in kinds}
        self._readers = ThreadPoolExecutor(threads)
        self._decoding = ThreadPoolExecutor(1)

    def submit(self, clips: list[Clip], plans: list[ClipPlan]) -> "Future[Fetched]":
        """Starts reading a batch."""
        reads = [
            self._readers.submit(read, clip, plan, self._kind(clip))
            for clip, plan in zip(clips, plans, strict=True)
        ]
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
                sources.setdefault(self._kind(clip), {})[row] = source
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
                frames = pixels[index].cpu()  # the same memory if it is there already
                apply_colours(frames.numpy(), colours)
                pixels[index] = frames
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
