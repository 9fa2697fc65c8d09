"""From a planned clip to pixels by PyAV or PIL, on one thread; DataError names what is wrong with a file."""

import io
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F

from taf_fast.data.clip import Clip, FrameFolder, FramePack
from taf_fast.data.decoding.jpeg import decode_frame_crops
from taf_fast.data.decoding.pyav import decode_video_crops
from taf_fast.data.views.colour import apply_colours
from taf_fast.data.views.planner import ClipPlan
from taf_fast.errors import DataError


def render(clip: Clip, plan: ClipPlan, out: torch.Tensor) -> None:
    """Decodes, crops, resizes, mirrors and colours the planned frames of ``clip`` into ``out``.

    ``out`` is uint8 ``[T, size, size, 3]`` (RGB), contiguous; all of it is written, or DataError raised
    because the clip cannot be decoded. Resizing is bilinear and anti-aliased, like PIL's up to rounding.
    """
    crops = torch.from_numpy(decode_crops(clip, plan)).permute(0, 3, 1, 2)
    height, width = out.shape[1:3]
    resized = F.interpolate(crops, plan.scaled or (height, width), mode="bilinear", antialias=True)
    y, x = plan.corner
    frames = resized.permute(0, 2, 3, 1)[:, y : y + height, x : x + width].numpy()
    delivered = out.numpy()
    # NumPy copies: PyTorch would start threads for it, which get in the way of the training step's threads.
    if plan.mirror:
        delivered.view("V3")[:] = frames.view("V3")[:, :, ::-1]  # whole pixels: twice as fast
    else:
        delivered[:] = frames
    if plan.colours is not None:
        apply_colours(delivered, plan.colours)


def decode_crops(clip: Clip, plan: ClipPlan) -> np.ndarray:
    """The planned frames, cropped, RGB uint8 ``[T, h, w, 3]``."""
    source = clip.source
    if isinstance(source, FrameFolder):
        names = map(source.name, plan.frames.tolist())
        return decode_frame_crops([(name, clip.path / name) for name in names], plan.box, clip.size)
    if isinstance(source, FramePack):
        return decode_frame_crops(_unpacked(clip.path, source, plan.frames.tolist()), plan.box, clip.size)
    if source is None:
        raise DataError("nothing is known of it: expected a clip without a defect")
    check_unchanged(clip)
    return decode_video_crops(clip, source, plan.frames, plan.box)


def _unpacked(path: Path, source: FramePack, frames: list[int]) -> list[tuple[str, Path | BinaryIO]]:
    try:
        with path.open("rb", buffering=0) as pack:
            contents = [
                os.pread(
                    pack.fileno(), source.offsets[frame + 1] - source.offsets[frame], source.offsets[frame]
                )
                for frame in frames
            ]
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {error.strerror or error}") from error
    return [(str(frame), io.BytesIO(content)) for frame, content in zip(frames, contents, strict=True)]


def check_unchanged(clip: Clip) -> None:
    """DataError if the length of the video file is not the one the scan found."""
    try:
        found = clip.path.stat().st_size
    except FileNotFoundError:
        raise DataError("missing file") from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}") from error
    if found != clip.bytes:
        raise DataError(f"changed since the scan: {found} bytes instead of {clip.bytes}")
