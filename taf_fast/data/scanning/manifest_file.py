"""The file that keeps what `taf-fast scan` saw: a header, then one clip per line, as JSON.

A line is on its own: one that a kill tore is as if it were not there, and of several for one clip the last
one counts.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from taf_fast.data.errors import DataError
from taf_fast.files import write_atomically

from .manifest import FACTS, Entry, Key

NAME = "taf_fast_manifest.jsonl"

# To be raised when a fact means something else than before, or there is another one.
_VERSION = 1
_HEADER = {"taf_fast_manifest": _VERSION}


def read_manifest(root: str | os.PathLike, file: str | os.PathLike | None = None) -> dict[Key, Entry]:
    """The entries that :func:`taf_fast.data.scan` can use, of the data set in ``root``.

    They are in ``file``; where that is None, in ``root/taf_fast_manifest.jsonl`` if it exists. DataError when
    ``file`` does not exist, or is not a manifest of this version.
    """
    path = Path(root) / NAME if file is None else Path(file)
    try:
        with path.open("rb") as opened:
            return _read(opened, path)
    except FileNotFoundError:
        if file is None:
            return {}
        raise DataError(
            f"no manifest {path}: write it with taf-fast scan --data {root} --manifest {path}"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


class ManifestFile:
    """A manifest to go on with, or a new one; ``entries`` are those it has, by what they are found by.

    To be used in a ``with`` statement, and by one process at a time. DataError when another one is at it,
    when it cannot be written, or when there is something else.
    """

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> "ManifestFile":
        try:
            self._file = self.path.open("a+b")
        except OSError as error:
            raise self._not_writable(error) from error
        try:
            self._lock()
            self._file.seek(0)
            self.entries = _read(self._file, self.path) if self._size() else {}
            # Also ends a line that a kill tore.
            self._write(b"\n" if self._size() else _line(_HEADER))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        # What a full disk has no room for has been complained of.
        with contextlib.suppress(OSError):
            self._file.close()

    def append(self, key: Key, entry: Entry) -> None:
        """Once this has returned, no end of the process loses the entry."""
        self._write(_line(_row(key, entry)))
        self.entries[key] = entry

    def finish(self, keys: Iterable[Key]) -> None:
        """Leaves a new file with the entries of ``keys``, in this order; nothing can be appended to it."""

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                file.write(_line(_HEADER))
                file.writelines(_line(_row(key, self.entries[key])) for key in keys)

        try:
            write_atomically(self.path, write)
        except OSError as error:
            raise self._not_writable(error) from error

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Replaced between opening and locking: what was locked is no longer the manifest.
            replaced = not os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except BlockingIOError:
            replaced = True
        except OSError as error:
            raise self._not_writable(error) from error
        if replaced:
            raise DataError(f"{self.path} is being written by another taf-fast scan")

    def _write(self, content: bytes) -> None:
        try:
            self._file.write(content)
            self._file.flush()
        except OSError as error:
            raise self._not_writable(error) from error

    def _not_writable(self, error: OSError) -> DataError:
        return DataError(
            f"{self.path} cannot be written: {error.strerror or error}; --manifest FILE chooses another place"
        )


def _line(value: dict) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _row(key: Key, entry: Entry) -> dict:
    size, mtime_ns = entry.mark or (None, None)
    path, frames = key
    facts = {name: entry.facts[name] for name in FACTS if name in entry.facts}
    return {"path": path, "annotated_frames": frames, "size": size, "mtime_ns": mtime_ns, **facts}


def _entry(row: dict) -> tuple[Key, Entry]:
    frames, size, mtime_ns = (row.get(name) for name in ("annotated_frames", "size", "mtime_ns"))
    facts = {name: row[name] for name in FACTS if name in row}
    # JSON has no tuples.
    if facts.get("keyframes") is not None:
        facts["keyframes"] = tuple(facts["keyframes"])
    mark = None if size is None else (size, mtime_ns)
    return (row["path"], None if frames is None else tuple(frames)), Entry(mark, facts)


def _read(file: BinaryIO, path: Path) -> dict[Key, Entry]:
    # Of another file the first line can be all of it.
    header = _parse(file.readline(1000))
    if "taf_fast_manifest" not in header:
        raise DataError(f"{path} is not a manifest: expected one that taf-fast scan wrote")
    if header != _HEADER:
        raise DataError(
            f"{path} is a manifest of version {header['taf_fast_manifest']}, expected {_VERSION}: "
            "delete it and run taf-fast scan again"
        )
    return dict(_entry(row) for row in map(_parse, file) if "path" in row)


def _parse(line: bytes) -> dict:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
