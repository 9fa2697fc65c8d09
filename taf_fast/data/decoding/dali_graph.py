"""The DALI graphs: video files, or frames that are decoded already, to resized uint8 clips."""

from collections.abc import Callable

import numpy as np
import torch

from taf_fast.data.views.planner import ClipPlan

from .dali_sources import CROPS, VIDEO


class ClipDecoder:
    """Makes clips of ``size`` x ``size`` pixels, up to ``batch_size`` at once in ``threads`` threads, from
    sources of one ``kind``, on the CPU or, with a ``device_id``, on that GPU.

    One iteration at a time: the caller overlaps decoding with its own work by calling from another thread. An
    error then belongs to the call that raised it, and nothing in flight is lost with it.
    """

    def __init__(self, kind: str, size: int, batch_size: int, threads: int, device_id: int | None):
        self._kind = kind
        self._device_id = device_id
        self._pipeline = _build(_HEADS[kind], size, batch_size, threads, device_id)

    def __call__(self, sources: list[np.ndarray], plans: list[ClipPlan]) -> tuple[torch.Tensor, np.ndarray]:
        """Clips uint8 ``[B, T, size, size, 3]`` (RGB) and the heights and widths of the frames they are cut
        from, int64 ``[B, 2]``.

        ``sources`` are what ``dali_sources.read`` gives. Raises RuntimeError when any of them cannot be
        decoded; the next call works again.
        """
        feed = {"source": sources, "mirror": [np.array(plan.mirror, np.int32) for plan in plans]}
        if self._kind == VIDEO:
            feed["frames"] = [plan.frames for plan in plans]
            feed["start"] = [np.array([plan.y, plan.x], np.int32) for plan in plans]
            feed["shape"] = [np.array([plan.height, plan.width], np.int32) for plan in plans]
        clips, sizes = self._pipeline.run(**feed)
        # Shares the memory: the dynamic executor does not write to outputs somebody still holds.
        pixels = torch.from_dlpack(clips.as_tensor())
        if self._device_id is not None:
            # It frees them in its own stream, which knows nothing of PyTorch's work on them.
            pixels = pixels.clone()
            torch.cuda.current_stream(self._device_id).synchronize()
        return pixels, sizes.as_array()


def _video(fn, types, on_gpu: bool):
    encoded = fn.external_source(name="source", dtype=types.UINT8, ndim=1)
    frames = fn.external_source(name="frames", dtype=types.INT32, ndim=1)
    start = fn.external_source(name="start", dtype=types.INT32, ndim=1)
    shape = fn.external_source(name="shape", dtype=types.INT32, ndim=1)
    # Every other pad mode turns frames that cannot be read into black or repeated ones.
    video = fn.decoders.video(encoded, frames=frames, pad_mode="none", device="mixed" if on_gpu else "cpu")
    return fn.slice(video, start=start, shape=shape, axis_names="HW"), video.shape(dtype=types.INT64)[1:3]


def _crops(fn, types, on_gpu: bool):
    crop = fn.external_source(name="source", dtype=types.UINT8, ndim=4, layout="FHWC")
    return crop.gpu() if on_gpu else crop, crop.shape(dtype=types.INT64)[1:3]


_HEADS: dict[str, Callable] = {VIDEO: _video, CROPS: _crops}


def _build(head: Callable, size: int, batch_size: int, threads: int, device_id: int | None):
    try:
        from nvidia.dali import fn, pipeline_def, types
    except ImportError as error:
        raise ImportError("this decoder needs NVIDIA DALI: pip install taf_fast[dali]") from error

    @pipeline_def(
        batch_size=batch_size,
        num_threads=threads,
        device_id=device_id,
        prefetch_queue_depth=1,
        exec_dynamic=True,
    )
    def graph():
        crop, shape = head(fn, types, device_id is not None)
        clip = fn.resize(crop, size=(size, size), interp_type=types.INTERP_LINEAR, antialias=True)
        mirror = fn.external_source(name="mirror", dtype=types.INT32, ndim=0)
        return fn.flip(clip, horizontal=mirror), shape

    return graph()
