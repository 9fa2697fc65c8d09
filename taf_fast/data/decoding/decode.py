"""The crops of a clip that a plan asks for, by PyAV or PIL; DataError names what is wrong with a file."""

import io
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np

from taf_fast.data.errors import DataError
from taf_fast.data.scanning.manifest import Clip
from taf_fast.data.views.planner import ClipPlan

from .jpeg import decode_frame_crops
from .pyav import decode_video_crops


def decode_crops(clip: Clip, plan: ClipPlan) -> np.ndarray:
    """The planned frames, cropped, RGB uint8 ``[T, h, w, 3]``."""
    box = (plan.y, plan.x, plan.height, plan.width)
    size = (clip.height, clip.width)
    if clip.codec == "jpeg":
        return decode_frame_crops(_pictures(clip, plan.frames.tolist()), box, size)
    check_unchanged(clip)
    return decode_video_crops(clip.path, plan.frames, box, size, clip.rotation)


def _pictures(clip: Clip, frames: list[int]) -> list[tuple[str, Path | BinaryIO]]:
    if clip.offsets is None:
        return [(file.name, file) for file in map(clip.frame_file, frames)]
    try:
        with clip.path.open("rb", buffering=0) as pack:
            contents = [
                os.pread(pack.fileno(), clip.offsets[frame + 1] - clip.offsets[frame], clip.offsets[frame])
                for frame in frames
            ]
    except OSError as error:
        raise DataError(f"{clip.path.name} cannot be read: {error.strerror or error}") from error
    return [(str(frame), io.BytesIO(content)) for frame, content in zip(frames, contents, strict=True)]


def check_unchanged(clip: Clip) -> None:
    """DataError unless the video file is as long as the scan saw it."""
    try:
        found = clip.path.stat().st_size
    except FileNotFoundError:
        raise DataError("missing file") from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}") from error
    if found != clip.bytes:
        raise DataError(f"changed since the scan: {found} bytes instead of {clip.bytes}")
