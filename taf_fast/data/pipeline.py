"""The DALI graph: encoded video to cropped and resized uint8 clips, on the CPU."""

import numpy as np
import torch

from .planner import ClipPlan


class ClipDecoder:
    """Decodes up to ``batch_size`` clips at once in ``threads`` threads; frames become ``size`` x ``size``
    pixels.

    One iteration at a time: the caller overlaps decoding with its own work by calling from another thread. An
    error then belongs to the call that raised it, and nothing in flight is lost with it.
    """

    def __init__(self, size: int, batch_size: int, threads: int):
        try:
            from nvidia.dali import fn, pipeline_def, types
        except ImportError as error:
            raise ImportError("reading video needs NVIDIA DALI: pip install taf_fast[dali]") from error

        @pipeline_def(
            batch_size=batch_size,
            num_threads=threads,
            device_id=None,
            prefetch_queue_depth=1,
            exec_dynamic=True,
        )
        def graph():
            encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
            frames = fn.external_source(name="frames", dtype=types.INT32, ndim=1)
            start = fn.external_source(name="start", dtype=types.INT32, ndim=1)
            shape = fn.external_source(name="shape", dtype=types.INT32, ndim=1)
            # Every other pad mode turns frames that cannot be read into black or repeated ones.
            video = fn.decoders.video(encoded, frames=frames, pad_mode="none", device="cpu")
            crop = fn.slice(video, start=start, shape=shape, axis_names="HW")
            clip = fn.resize(crop, size=(size, size), interp_type=types.INTERP_LINEAR, antialias=True)
            return clip, video.shape(dtype=types.INT64)

        self._pipeline = graph()

    def __call__(self, encoded: list[np.ndarray], plans: list[ClipPlan]) -> tuple[torch.Tensor, np.ndarray]:
        """Clips uint8 ``[B, T, size, size, 3]`` (RGB) and the decoded videos' shapes int64 ``[B, 4]``, FHWC.

        ``encoded`` are whole files as uint8 vectors. Raises RuntimeError when any of them cannot be decoded;
        the next call works again.
        """
        clips, shapes = self._pipeline.run(
            encoded=encoded,
            frames=[plan.frames for plan in plans],
            start=[np.array([plan.y, plan.x], np.int32) for plan in plans],
            shape=[np.array([plan.height, plan.width], np.int32) for plan in plans],
        )
        # Shares the memory: the dynamic executor does not write to outputs somebody still holds.
        return torch.from_dlpack(clips.as_tensor()), shapes.as_array()
