"""A checksum of a clip's files, which shows when bytes have changed."""

import stat
import zlib
from collections.abc import Iterable
from pathlib import Path

_CHUNK = 2**20


def checksum(files: Iterable[Path]) -> int:
    """CRC-32 of the contents of ``files``, one after the other; OSError if one cannot be read."""
    crc = 0
    for path in files:
        # Opening a pipe would wait for somebody to write into it.
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(f"{path} is not a file")
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                crc = zlib.crc32(chunk, crc)
    return crc
