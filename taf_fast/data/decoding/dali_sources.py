"""From a planned clip to what DALI takes; DataError names what is wrong with its files."""

import numpy as np

from taf_fast.data.errors import DataError
from taf_fast.data.scanning.manifest import Clip
from taf_fast.data.scanning.probe import DALI_CODECS
from taf_fast.data.views.planner import ClipPlan

from .decode import check_unchanged, decode_crops

VIDEO, CROPS = "video", "crops"


# What a GPU's decoder adds.
_GPU_CODECS = ("h264", "hevc", "mpeg4")


def kind(clip: Clip, on_gpu: bool) -> str:
    """What a clip is to DALI: a file to decode (VIDEO), or frames that are decoded already (CROPS)."""
    codecs = DALI_CODECS + _GPU_CODECS if on_gpu else DALI_CODECS
    return VIDEO if clip.codec in codecs and not clip.rotation else CROPS


def read(clip: Clip, plan: ClipPlan, kind: str) -> np.ndarray:
    """VIDEO: the file, uint8 ``[bytes]``. CROPS: the planned frames, cropped, RGB uint8 ``[T, h, w, 3]``."""
    if kind == CROPS:
        return decode_crops(clip, plan)
    check_unchanged(clip)
    try:
        return np.fromfile(clip.path, np.uint8)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}") from error
