"""The structure of Matroska and WebM files: demuxers treat a cut or damaged file as a shorter clip."""

from pathlib import Path
from typing import BinaryIO

_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067
# Parts of a segment: seek head, info, tracks, clusters, cues, attachments, chapters, tags; padding, checksum.
_PARTS = {
    *(0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1F43B675, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367),
    *(0xEC, 0xBF),
}


def matroska_defect(path: Path) -> str | None:
    """Where the file breaks off or is overwritten; None for an intact file and for other formats.

    Only the parts of the file (a few seconds of video each) are checked, not their contents. Streams with
    parts of unknown size cannot be checked.
    """
    length = path.stat().st_size
    with path.open("rb") as file:
        header = _element(file)
        if header is None or header[0] != _EBML or header[1] is None or header[1] > length:
            return None
        file.seek(header[1], 1)
        segment = _element(file)
        if segment is None or segment[0] != _SEGMENT or segment[1] is None:
            return None
        end = file.tell() + segment[1]
        if length < end:
            return f"truncated: {length} of {end} bytes"
        while file.tell() < end:
            at = file.tell()
            part = _element(file)
            if part is None or part[0] not in _PARTS or (part[1] or 0) > end - file.tell():
                return f"damaged at byte {at} of {length}"
            if part[1] is None:
                return None
            file.seek(part[1], 1)
    return None


def _element(file: BinaryIO) -> tuple[int, int | None] | None:
    """Identifier and size of the element that begins here, with None for an unknown size; None if no element
    begins here."""
    identifier, size = _number(file), _number(file)
    if identifier is None or size is None:
        return None
    value, length = size
    # The first set bit gives the length of the number; all ones mean that the size is unknown.
    value -= 1 << 7 * length
    return identifier[0], (None if value == (1 << 7 * length) - 1 else value)


def _number(file: BinaryIO) -> tuple[int, int] | None:
    """A number of variable length, including the bit that marks its length, and that length in bytes."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    rest = file.read(length - 1)
    return (int.from_bytes(first + rest, "big"), length) if len(rest) == length - 1 else None
