"""The structure of AVI files: demuxers treat a cut file as a shorter clip."""

import struct
from pathlib import Path

# What recorders write that cannot go back to fill in the size.
_UNKNOWN = 0xFFFFFFFF


def riff_defect(path: Path) -> str | None:
    """Where the file breaks off; None for an intact file, one of unknown size and other formats."""
    length = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(12)
    if len(header) < 12 or header[:4] != b"RIFF" or header[8:] != b"AVI ":
        return None
    size = struct.unpack("<I", header[4:8])[0]
    if size == _UNKNOWN:
        return None
    end = 8 + size
    return f"truncated: {length} of {end} bytes" if length < end else None
