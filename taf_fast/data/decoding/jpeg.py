"""Decoding folders of JPEG frames with PIL.

DALI's decoder gives the same pixels, but crashes the process when the header of one in a batch is damaged.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from taf_fast.data.errors import DataError, different_size


def decode_frame_crops(
    frames: Sequence[tuple[str, Path | BinaryIO]], box: tuple[int, int, int, int], size: tuple[int, int]
) -> np.ndarray:
    """Crops ``box`` (y, x, height, width) of ``frames``, each a name and a file, uint8 ``[T, h, w, 3]`` RGB.

    ``size`` is the (height, width) that frames must have. DataError when one cannot be decoded.
    """
    y, x, height, width = box
    crops = np.empty((len(frames), height, width, 3), np.uint8)
    for crop, (name, file) in zip(crops, frames, strict=True):
        picture = decode_jpeg(file, name)
        if picture.size[::-1] != size:
            raise DataError(different_size(picture.size[::-1], size))
        crop[:] = picture.crop((x, y, x + width, y + height))
    return crops


def decode_jpeg(file: Path | BinaryIO, name: str) -> Image.Image:
    """The picture in RGB; DataError, calling it ``name``, when it cannot be decoded."""
    try:
        with Image.open(file, formats=["JPEG"]) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise DataError(f"missing frame {name}") from None
    except UnidentifiedImageError:
        raise DataError(f"frame {name} is not a JPEG picture") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"frame {name} cannot be decoded: {error}") from error
