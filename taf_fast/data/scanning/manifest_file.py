"""The file that keeps what `taf-fast scan` found: a header, then one clip per line, as JSON.

Lines are independent: one torn by a kill is ignored, and if there are several for one clip, the last counts.
"""

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from taf_fast.data.clip import FrameFolder, Size, VideoFile
from taf_fast.data.scanning.manifest import Entry, Key
from taf_fast.data.scanning.probe import Facts
from taf_fast.errors import DataError
from taf_fast.files import lock, write_atomically
from taf_fast.parsing import parse_json, to_json

NAME = "taf_fast_manifest.jsonl"

# Raise it when a fact is added or changes its meaning.
_VERSION = 2
_HEADER = {"taf_fast_manifest": _VERSION}
_COUNTS = ("frames", "height", "width", "bytes")
_REQUIRED = {"path", "annotated_frames", "size", "mtime_ns", *_COUNTS, "decoded"}
_OF_VIDEOS = {"pixels": str, "rotation": int, "regular": bool, "late": bool}


def read_manifest(root: str | os.PathLike, file: str | os.PathLike | None = None) -> dict[Key, Entry]:
    """The entries for the data set in ``root`` that :func:`taf_fast.data.scan` can use.

    They are read from ``file``, or if that is None from ``root/taf_fast_manifest.jsonl`` if it exists.
    DataError if ``file`` does not exist or is not a manifest of this version.
    """
    path = Path(root) / NAME if file is None else Path(file)
    try:
        # Opening a pipe would wait for somebody to write into it.
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"{path} is not a file, expected the manifest that taf-fast scan wrote")
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
    """A manifest to continue, or a new one; ``entries`` are its entries by key.

    Use it in a ``with`` statement, in one process at a time. DataError if another process is writing it, if
    it cannot be written, or if the file is something else.
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
            if 0 < self._size() < len(_line(_HEADER)):
                self._file.truncate(0)
            # A line break also ends a line torn by a kill.
            self._write(b"\n" if self._size() else _line(_HEADER))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # A full disk has already been reported by the write that failed.
        with contextlib.suppress(OSError):
            self._file.close()

    def append(self, key: Key, entry: Entry) -> None:
        """Adds an entry; once this returns, a kill does not lose it."""
        self._write(_line(_row(key, entry)))
        self.entries[key] = entry

    def finish(self, keys: Iterable[Key]) -> None:
        """Replaces the file by one with the entries of ``keys``, in this order; nothing can be appended to it
        afterwards."""

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
            # If the file was replaced between opening and locking, the locked one is no longer the manifest.
            ours = lock(self._file) and os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except OSError as error:
            raise self._not_writable(error) from error
        if not ours:
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
    return to_json(value).encode() + b"\n"


def _row(key: Key, entry: Entry) -> dict:
    size, mtime_ns = entry.mark or (None, None)
    path, frames = key
    facts = entry.facts
    row = {
        "path": path,
        "annotated_frames": frames,
        "size": size,
        "mtime_ns": mtime_ns,
        "frames": facts.frames,
        "height": facts.size.height,
        "width": facts.size.width,
        "bytes": facts.bytes,
        "decoded": facts.decoded,
        **(vars(facts.source) if facts.source else {}),
    }
    if facts.checksum is not None:
        row["checksum"] = facts.checksum
    if facts.defect is not None:
        row["defect"] = facts.defect
    return row


def _entries(rows: Iterable[dict]) -> Iterator[tuple[Key, Entry]]:
    for row in rows:
        if _is_row(row):
            yield _entry(row)


def _is_row(row: dict) -> bool:
    """Whether a line has all facts, each of its kind."""
    if not row.keys() >= _REQUIRED:
        return False
    frames = row["annotated_frames"]
    return (
        all(isinstance(row.get(name, ""), str) for name in ("path", "codec", "pixels", "template", "defect"))
        and all(type(row[name]) is int and 0 <= row[name] < 2**62 for name in _COUNTS)
        and all(type(row[name]) is int or row[name] is None for name in ("size", "mtime_ns"))
        and (frames is None or (isinstance(frames, list) and [type(n) for n in frames] == [int, int]))
        and type(row.get("checksum", 0)) is int
        and ("codec" not in row or {name: type(row.get(name)) for name in _OF_VIDEOS} == _OF_VIDEOS)
        and ("template" not in row or (type(row.get("first")) is int and _is_template(row["template"])))
    )


def _is_template(text: str) -> bool:
    return re.fullmatch(r"(img_)?\{:0[56]d\}\.jpg", text) is not None


def _entry(row: dict) -> tuple[Key, Entry]:
    source: VideoFile | FrameFolder | None = None
    if "codec" in row:
        source = VideoFile(row["codec"], row["pixels"], row["rotation"], row["regular"], row["late"])
    elif "template" in row:
        source = FrameFolder(row["template"], row["first"])
    facts = Facts(
        source,
        row["frames"],
        Size(row["height"], row["width"]),
        row["bytes"],
        row["decoded"],
        row.get("checksum"),
        row.get("defect"),
    )
    mark = None if row["size"] is None else (row["size"], row["mtime_ns"])
    frames = row["annotated_frames"]
    return (row["path"], None if frames is None else tuple(frames)), Entry(mark, facts)


def _read(file: BinaryIO, path: Path) -> dict[Key, Entry]:
    # The first line of any other file may be very long.
    first = file.readline(1000)
    if len(first) < len(_line(_HEADER)) and _line(_HEADER).startswith(first):
        return {}  # a kill tore the header
    header = _parse(first)
    if "taf_fast_manifest" not in header:
        raise DataError(f"{path} is not a manifest: expected one that taf-fast scan wrote")
    if header != _HEADER:
        raise DataError(
            f"{path} is a manifest of version {header['taf_fast_manifest']}, expected {_VERSION}: "
            "delete it and run taf-fast scan again"
        )
    return dict(_entries(map(_parse, file)))


def _parse(line: bytes) -> dict:
    try:
        value = parse_json(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
