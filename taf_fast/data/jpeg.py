"""Decoding folders of JPEG frames with PIL.

DALI's decoder gives the same pixels, but crashes the process when the header of one in a batch is damaged.
"""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from .errors import DataError, different_size


def decode_frame_crops(
    files: list[Path], box: tuple[int, int, int, int], size: tuple[int, int]
) -> np.ndarray:
    """Crops ``box`` (y, x, height, width) of the frames in ``files``, uint8 ``[T, h, w, 3]`` RGB.

    ``size`` is the (height, width) that frames must have. DataError when one cannot be decoded.
    """
    y, x, height, width = box
    crops = np.empty((len(files), height, width, 3), np.uint8)
    for crop, file in zip(crops, files, strict=True):
        picture = _decode(file)
        if picture.size[::-1] != size:
            raise DataError(different_size(picture.size[::-1], size))
        crop[:] = picture.crop((x, y, x + width, y + height))
    return crops


def _decode(path: Path) -> Image.Image:
    try:
        with Image.open(path, formats=["JPEG"]) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise DataError(f"missing frame {path.name}") from None
    except UnidentifiedImageError:
        raise DataError(f"frame {path.name} is not a JPEG picture") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"frame {path.name} cannot be decoded: {error}") from error
