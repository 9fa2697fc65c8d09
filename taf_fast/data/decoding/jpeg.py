"""Decoding folders of JPEG frames with PIL.

DALI's decoder gives the same pixels, but crashes the process if the header of one picture is damaged.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from taf_fast.data.clip import Box, Size, different_size
from taf_fast.errors import DataError


def decode_frame_crops(frames: Sequence[tuple[str, Path | BinaryIO]], box: Box, size: Size) -> np.ndarray:
    """Crops of ``frames``, each a name and a file, RGB uint8 ``[T, h, w, 3]``.

    ``size`` is the size that the frames must have. DataError if one cannot be decoded.
    """
    return np.stack([_decode_crop(file, name, box, size) for name, file in frames])


def _decode_crop(file: Path | BinaryIO, name: str, box: Box, size: Size) -> np.ndarray:
    picture = decode_jpeg(file, name)
    found = size_of(picture)
    if found != size:
        raise DataError(different_size(found, size))
    return np.asarray(picture.crop((box.x, box.y, box.x + box.width, box.y + box.height)))


def size_of(picture: Image.Image) -> Size:
    return Size(picture.height, picture.width)


def decode_jpeg(file: Path | BinaryIO, name: str) -> Image.Image:
    """The picture in RGB; DataError, which calls it ``name``, if it cannot be decoded."""
    with _opened(file, name) as image:
        return image.convert("RGB")


def picture_size(path: Path, whole: bool = False) -> Size:
    """The size of a picture; DataError if it cannot be read, with ``whole`` also if it cannot be decoded."""
    with _opened(path, path.name) as image:
        size = size_of(image)
        if whole:
            # Reads all the data, but computes only an eighth of the pixels.
            image.draft("RGB", (1, 1))
            image.load()
    return size


@contextmanager
def _opened(file: Path | BinaryIO, name: str) -> Iterator[Image.Image]:
    try:
        with Image.open(file, formats=["JPEG"]) as image:
            yield image
    except FileNotFoundError:
        raise DataError(f"missing frame {name}") from None
    except UnidentifiedImageError:
        raise DataError(f"frame {name} is not a JPEG picture") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"frame {name} is too large: {error}") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"frame {name} cannot be decoded: {error}") from error
