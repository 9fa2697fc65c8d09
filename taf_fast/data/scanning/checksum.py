"""A checksum of clips' files, to tell when bytes change that should not."""

import zlib
from collections.abc import Iterable
from pathlib import Path

_CHUNK = 2**20


def checksum(files: Iterable[Path]) -> int:
    """CRC-32 of the contents one after the other, of any size; OSError when one cannot be read."""
    crc = 0
    for path in files:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                crc = zlib.crc32(chunk, crc)
    return crc
