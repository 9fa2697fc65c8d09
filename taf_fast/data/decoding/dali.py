"""Decoding and resizing clips with NVIDIA DALI. PyAV and PIL decode what its build cannot."""

import importlib
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from taf_fast.data.clip import Clip, Size, VideoFile, different_size
from taf_fast.data.decoding.decode import check_unchanged, decode_crops
from taf_fast.data.decoding.fetch import Fetched, Request, in_order
from taf_fast.data.views.colour import apply_colours
from taf_fast.data.views.planner import ClipPlan
from taf_fast.errors import DataError, MissingDependency

# What DALI gets of a clip: the file, to decode it, or crops that PyAV or PIL has decoded.
VIDEO, CROPS = "video", "crops"

# The codecs that DALI decodes without a GPU, and those that a GPU's decoder adds; the pixel formats whose
# conversion equals PyAV's.
_CODECS = ("vp8", "vp9", "mjpeg")
_GPU_CODECS = ("h264", "hevc", "mpeg4")
_PIXELS = ("yuv420p", "yuvj420p")


def kind(clip: Clip, on_gpu: bool) -> str:
    """VIDEO or CROPS."""
    source = clip.source
    if not isinstance(source, VideoFile):
        return CROPS
    codecs = _CODECS + _GPU_CODECS if on_gpu else _CODECS
    # DALI counts packets, takes any video stream, conceals damage and ignores rotation.
    decodes = source.regular and source.codec in codecs and source.pixels in _PIXELS and not source.rotation
    return VIDEO if decodes else CROPS


def read(clip: Clip, plan: ClipPlan, kind: str) -> np.ndarray:
    """VIDEO: the file, uint8 ``[bytes]``. CROPS: the planned frames, cropped, RGB uint8 ``[T, h, w, 3]``."""
    if kind == CROPS:
        return decode_crops(clip, plan)
    check_unchanged(clip)
    try:
        return np.fromfile(clip.path, np.uint8)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}") from error


class ClipDecoder:
    """Makes clips of ``size`` x ``size`` pixels, up to ``batch_size`` at once in ``threads`` threads, from
    sources of one ``kind``, on the CPU or, with a ``device_id``, on that GPU.

    It runs one iteration at a time: the caller overlaps decoding with its own work by calling from another
    thread. An error then belongs to the call that raised it, and nothing in flight is lost with it.
    """

    def __init__(self, kind: str, size: int, batch_size: int, threads: int, device_id: int | None):
        self._kind = kind
        self._size = size
        self._device_id = device_id
        self._pipeline = _build(_HEADS[kind], size, batch_size, threads, device_id)

    def __call__(self, sources: list[np.ndarray], plans: list[ClipPlan]) -> tuple[torch.Tensor, np.ndarray]:
        """Clips uint8 ``[B, T, size, size, 3]`` (RGB), and the sizes of the frames they are cut from, int64
        ``[B, 2]``.

        ``sources`` come from :func:`read`. Raises RuntimeError if any of them cannot be decoded; the next
        call works again.
        """
        feed = {
            "source": sources,
            "scaled": [np.array(plan.scaled or (self._size, self._size), np.float32) for plan in plans],
            "corner": [np.array(plan.corner, np.int32) for plan in plans],
            "mirror": [np.array(plan.mirror, np.int32) for plan in plans],
        }
        if self._kind == VIDEO:
            feed["frames"] = [plan.frames for plan in plans]
            feed["start"] = [np.array(plan.box[:2], np.int32) for plan in plans]
            feed["shape"] = [np.array(plan.box[2:], np.int32) for plan in plans]
        clips, sizes = self._pipeline.run(**feed)
        # Shares the memory: the dynamic executor does not write to outputs somebody still holds.
        pixels = torch.from_dlpack(clips.as_tensor())
        if self._device_id is not None:
            # DALI frees them in a stream of its own, which does not wait for PyTorch's work on them.
            pixels = pixels.clone()
            torch.cuda.current_stream(self._device_id).synchronize()
        return pixels, sizes.as_array()


def _video(fn: Any, types: Any, on_gpu: bool) -> tuple[Any, Any]:
    encoded = fn.external_source(name="source", dtype=types.UINT8, ndim=1)
    frames = fn.external_source(name="frames", dtype=types.INT32, ndim=1)
    start = fn.external_source(name="start", dtype=types.INT32, ndim=1)
    shape = fn.external_source(name="shape", dtype=types.INT32, ndim=1)
    # Every other pad mode replaces frames that cannot be read by black or repeated ones.
    video = fn.decoders.video(encoded, frames=frames, pad_mode="none", device="mixed" if on_gpu else "cpu")
    return fn.slice(video, start=start, shape=shape, axis_names="HW"), video.shape(dtype=types.INT64)[1:3]


def _crops(fn: Any, types: Any, on_gpu: bool) -> tuple[Any, Any]:
    crop = fn.external_source(name="source", dtype=types.UINT8, ndim=4, layout="FHWC")
    return crop.gpu() if on_gpu else crop, crop.shape(dtype=types.INT64)[1:3]


_HEADS: dict[str, Callable[[Any, Any, bool], tuple[Any, Any]]] = {VIDEO: _video, CROPS: _crops}


def _build(
    head: Callable[[Any, Any, bool], tuple[Any, Any]],
    size: int,
    batch_size: int,
    threads: int,
    device_id: int | None,
) -> Any:
    try:
        # Its type stubs are incomplete.
        dali: Any = importlib.import_module("nvidia.dali")
    except ImportError as error:
        raise MissingDependency("this decoder needs NVIDIA DALI: pip install taf_fast[dali]") from error

    fn, types = dali.fn, dali.types

    def graph() -> tuple[Any, Any]:
        crop, shape = head(fn, types, device_id is not None)
        scaled = fn.external_source(name="scaled", dtype=types.FLOAT, ndim=1)
        clip = fn.resize(crop, size=scaled, interp_type=types.INTERP_LINEAR, antialias=True)
        corner = fn.external_source(name="corner", dtype=types.INT32, ndim=1)
        clip = fn.slice(clip, start=corner, shape=(size, size), axis_names="HW")
        mirror = fn.external_source(name="mirror", dtype=types.INT32, ndim=0)
        return fn.flip(clip, horizontal=mirror), shape

    pipeline = dali.pipeline_def(
        batch_size=batch_size,
        num_threads=threads,
        device_id=device_id,
        prefetch_queue_depth=1,
        exec_dynamic=True,
    )
    return pipeline(graph)()


@dataclass(frozen=True)
class _Reading(Request):
    """A batch under way; ``reads[row]`` reads the source of ``clips[row]``."""

    reads: list[Future[np.ndarray]]


class DaliFetcher:
    """The :class:`~taf_fast.data.decoding.fetch.Fetcher` of DALI, for ``clips`` and batches of at most
    ``batch_size``, on the CPU or, with a ``device_id``, on that GPU."""

    def __init__(
        self, clips: Iterable[Clip], size: int, batch_size: int, threads: int, device_id: int | None = None
    ):
        self._kind = partial(kind, on_gpu=device_id is not None)
        # What DALI fails to decode comes as crops.
        kinds = {CROPS, *map(self._kind, clips)}
        self._batch = {name: ClipDecoder(name, size, batch_size, threads, device_id) for name in kinds}
        self._single = {name: ClipDecoder(name, size, 1, 1, device_id) for name in kinds}
        self._readers = ThreadPoolExecutor(threads)
        self._decoding = ThreadPoolExecutor(1)

    def fetch(self, requests: Iterator[Request]) -> Iterator[tuple[Request, Fetched]]:
        return in_order(self.submit, requests)

    def submit(self, clips: list[Clip], plans: list[ClipPlan]) -> Future[Fetched]:
        """Starts decoding a batch; batches finish in the order in which they were submitted."""
        reads = [
            self._readers.submit(read, clip, plan, self._kind(clip))
            for clip, plan in zip(clips, plans, strict=True)
        ]
        return self._decoding.submit(self._decode, _Reading(clips, plans, reads))

    def _decode(self, request: _Reading) -> Fetched:
        sources: dict[str, dict[int, np.ndarray]] = {}
        failures: dict[int, str] = {}
        for row, (clip, future) in enumerate(zip(request.clips, request.reads, strict=True)):
            try:
                source = future.result()
            except DataError as error:
                failures[row] = str(error)
            else:
                sources.setdefault(self._kind(clip), {})[row] = source
        parts = [self._decode_kind(name, request, some, failures) for name, some in sources.items()]
        parts = [(rows, pixels) for rows, pixels in parts if rows]
        rows = [row for some, _ in parts for row in some]
        if not rows:
            return Fetched(torch.empty(0, dtype=torch.uint8), [], failures)
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
        self, name: str, request: _Reading, sources: dict[int, np.ndarray], failures: dict[int, str]
    ) -> tuple[list[int], torch.Tensor]:
        """Rows and pixels of the clips that can be decoded; the reasons of the others go to ``failures``."""
        try:
            rows = list(sources)
            pixels, sizes = self._batch[name](list(sources.values()), [request.plans[row] for row in rows])
        except RuntimeError:
            # DALI does not say which clip it was.
            rows, pixels, sizes = self._decode_singly(name, request, sources, failures)
        # Where frames have another size than the scan found, the crop is not the planned one.
        for row, found in zip(rows, map(Size._make, sizes.tolist()), strict=True):
            if name == VIDEO and found != request.clips[row].size:
                failures[row] = different_size(found, request.clips[row].size)
        good = [index for index, row in enumerate(rows) if row not in failures]
        if len(good) < len(rows):
            pixels = pixels[good]
        return [rows[index] for index in good], pixels

    def _decode_singly(
        self, name: str, request: _Reading, sources: dict[int, np.ndarray], failures: dict[int, str]
    ) -> tuple[list[int], torch.Tensor, np.ndarray]:
        """Rows, pixels and frame sizes of the clips that can be decoded, one after the other; the reasons of
        the others go to ``failures``."""
        results = {}
        for row, source in sources.items():
            clip, plan = request.clips[row], request.plans[row]
            try:
                results[row] = self._single[name]([source], [plan])
            except RuntimeError as error:
                failures[row] = _reason(error)
                if name == VIDEO:
                    # PyAV decodes some files that DALI does not.
                    with suppress(DataError):
                        pixels, _ = self._single[CROPS]([decode_crops(clip, plan)], [plan])
                        results[row] = pixels, np.array([clip.size])
                        del failures[row]
        if not results:
            return [], torch.empty(0, dtype=torch.uint8), np.empty((0, 2), int)
        pixels, sizes = zip(*results.values(), strict=True)
        return list(results), torch.cat(pixels), np.concatenate(sizes)


def _reason(error: RuntimeError) -> str:
    """The sentence of DALI's long message that is about the clip."""
    text = str(error).rpartition("encountered:\n\n")[2].partition("\nC++ context")[0]
    return "cannot be decoded: " + re.sub(r'^Assert on ".*" failed: ', "", text).split(". ")[0].strip()
