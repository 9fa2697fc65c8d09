"""From a planned clip to what DALI takes; DataError names what is wrong with the files."""

import numpy as np

from .errors import DataError
from .jpeg import decode_frame_crops
from .manifest import Clip
from .planner import ClipPlan
from .probe import DALI_CODECS
from .pyav import decode_video_crops

VIDEO, CROPS = "video", "crops"


def kind(clip: Clip) -> str:
    """What a clip is to DALI: a file to decode (VIDEO), or frames that are decoded already (CROPS)."""
    return VIDEO if clip.codec in DALI_CODECS and not clip.rotation else CROPS


def read(clip: Clip, plan: ClipPlan) -> np.ndarray:
    """VIDEO: the file, uint8 ``[bytes]``. CROPS: the planned frames, cropped, RGB uint8 ``[T, h, w, 3]``."""
    box = (plan.y, plan.x, plan.height, plan.width)
    size = (clip.height, clip.width)
    if clip.codec == "jpeg":
        numbers = clip.first_frame + plan.frames
        return decode_frame_crops([clip.path / clip.frame_name.format(n) for n in numbers], box, size)
    try:
        found = clip.path.stat().st_size
        if found != clip.bytes:
            raise DataError(f"changed since the scan: {found} bytes instead of {clip.bytes}")
        if kind(clip) == VIDEO:
            return np.fromfile(clip.path, np.uint8)
    except FileNotFoundError:
        raise DataError("missing file") from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}") from error
    return decode_video_crops(clip.path, plan.frames, box, size, clip.rotation)
