"""Files that are whole or absent, whatever happens to the process or the machine."""

import os
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in place in one move.

    A kill at any moment leaves the previous file or the new one, whole; so does a power cut.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    _sync(temporary, os.O_RDONLY)
    os.replace(temporary, path)
    _sync(path.parent, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
