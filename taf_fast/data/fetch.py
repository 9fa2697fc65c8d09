"""From planned clips to pixels, in the background: bad clips come back as reasons, never as exceptions."""

import re
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from .errors import DataError
from .manifest import Clip
from .pipeline import ClipDecoder
from .planner import ClipPlan


@dataclass(frozen=True)
class Fetched:
    """Clips that could be read: uint8 ``[len(rows), T, size, size, 3]`` (None without any), their rows in the
    request in ascending order, and the reason of every other row."""

    clips: torch.Tensor | None
    rows: list[int]
    failures: dict[int, str]


class ClipFetcher:
    """Reads files in ``threads`` threads and decodes them batch by batch, in the order of submission."""

    def __init__(self, size: int, batch_size: int, threads: int):
        self._batch = ClipDecoder(size, batch_size, threads)
        self._single = ClipDecoder(size, batch_size=1, threads=1)
        self._readers = ThreadPoolExecutor(threads)
        self._decoding = ThreadPoolExecutor(1)

    def submit(self, clips: list[Clip], plans: list[ClipPlan]) -> "Future[Fetched]":
        """Starts reading a batch of at most ``batch_size`` clips."""
        reads = [self._readers.submit(_read, clip) for clip in clips]
        return self._decoding.submit(self._decode, clips, plans, reads)

    def _decode(self, clips: list[Clip], plans: list[ClipPlan], reads: list[Future]) -> Fetched:
        encoded: dict[int, np.ndarray] = {}
        failures: dict[int, str] = {}
        for row, read in enumerate(reads):
            try:
                encoded[row] = read.result()
            except DataError as error:
                failures[row] = str(error)
        if encoded:
            try:
                rows = list(encoded)
                pixels, shapes = self._batch(list(encoded.values()), [plans[row] for row in rows])
            except RuntimeError:
                # DALI does not say which clip it was.
                rows, pixels, shapes = self._decode_singly(encoded, plans, failures)
            # A file can hold other frames than its container says: its crop would be another one.
            for row, shape in zip(rows, shapes, strict=True):
                expected = (len(plans[row].frames), clips[row].height, clips[row].width, 3)
                if tuple(shape) != expected:
                    failures[row] = f"decoded to shape {(*map(int, shape),)}, expected {expected}"
        if len(failures) == len(clips):
            return Fetched(None, [], failures)
        good = [index for index, row in enumerate(rows) if row not in failures]
        if len(good) < len(rows):
            pixels = pixels[good]
        return Fetched(pixels, [rows[index] for index in good], failures)

    def _decode_singly(
        self, encoded: dict[int, np.ndarray], plans: list[ClipPlan], failures: dict[int, str]
    ) -> tuple[list[int], torch.Tensor | None, np.ndarray]:
        """Decodes the clips that can be, noting the reasons of the others in ``failures``."""
        results = {}
        for row, data in encoded.items():
            try:
                results[row] = self._single([data], [plans[row]])
            except RuntimeError as error:
                failures[row] = _reason(error)
        if not results:
            return [], None, np.empty((0, 4))
        pixels, shapes = zip(*results.values(), strict=True)
        return list(results), torch.cat(pixels), np.concatenate(shapes)


def _read(clip: Clip) -> np.ndarray:
    """The whole file, uint8; DataError when it is not the file that was scanned."""
    try:
        data = np.fromfile(clip.path, np.uint8)
    except FileNotFoundError:
        raise DataError("missing file") from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}") from error
    if data.size != clip.bytes:
        raise DataError(f"changed since the scan: {data.size} bytes instead of {clip.bytes}")
    return data


def _reason(error: RuntimeError) -> str:
    """The one sentence of DALI's message that is about the clip."""
    text = str(error).rpartition("encountered:\n\n")[2].partition("\nC++ context")[0]
    return "cannot be decoded: " + re.sub(r'^Assert on ".*" failed: ', "", text).split(". ")[0].strip()
