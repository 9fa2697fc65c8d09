"""Files that are whole or absent, even after a kill or a power cut."""

import contextlib
import csv
import fcntl
import os
import secrets
import shutil
import socket
import stat
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from taf_fast.errors import DataError, FileError
from taf_fast.parsing import to_json
from taf_fast.plain import from_cell, say, to_cell

# The start of the names of temporary folders.
_TEMPORARY = ".taf_fast-"

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise what the system says against writing ``path`` in the block as a FileError that names it."""
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file next to ``path``, then put it in place in one move.

    A kill or a power cut at any moment leaves either the previous file or the new one, whole. What a killed
    process left next to it goes with the next call. A link is followed to its target. The new file has the
    permissions of the user's umask.

    Raises:
        FileError: ``path`` is a folder, a device or another thing than a regular file, or cannot be written.
            What was there is untouched, and the temporary file is removed.
    """
    with writing(path):
        target = _replaceable(path)
        with _temporary_folder(target.parent) as folder:
            temporary = folder / "file"
            temporary.touch()
            permissions = stat.S_IMODE(temporary.stat().st_mode)
            write(temporary)
            temporary.chmod(permissions)  # writers such as that of safetensors put a file of their own there
            _sync(temporary, os.O_RDONLY)
            os.replace(temporary, target)
        _sync(target.parent, os.O_RDONLY | os.O_DIRECTORY)


def require_writable(path: Path) -> None:
    """Raise FileError unless :func:`write_atomically` could write ``path`` now: before hours of work."""
    with writing(path), _temporary_folder(_replaceable(path).parent) as folder:
        (folder / "file").touch()


def require_other(path: Path, source: Path) -> None:
    """Raise FileError if writing ``path`` would replace ``source``, the file that is read for it."""
    if path.exists() and source.exists() and path.samefile(source):
        raise _unwritable(path, "it is the file that is read, expected another")


def remove_temporaries(folder: Path, host: str = "*") -> None:
    """Remove what calls of :func:`write_atomically` left in ``folder`` whose processes are gone.

    On a file system whose locks hold on one machine only, this takes the processes of other machines for
    gone. ``host``, a machine as the names of temporary folders have it, leaves those of the others alone.
    """
    for path in folder.glob(f"{_TEMPORARY}{host}-*.tmp"):
        with contextlib.suppress(OSError):  # another process removes it too, or there are no locks
            descriptor = _open_folder(path)
            try:
                if lock(descriptor):
                    shutil.rmtree(path)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    """A new folder in ``parent`` for the block, locked so that other processes leave it alone.

    A folder, because writers such as that of safetensors have temporary files of their own.
    """
    host = f"{zlib.crc32(socket.gethostname().encode()):08x}"
    remove_temporaries(parent, host)
    descriptor = None
    while descriptor is None:
        # Nobody can guess the name and put a link there; mkdir would refuse it.
        folder = parent / f"{_TEMPORARY}{host}-{secrets.token_hex(8)}.tmp"
        folder.mkdir(mode=0o700)
        descriptor = _locked(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _locked(folder: Path) -> int | None:
    """A descriptor of a new folder that holds its lock; None if another process has removed the folder."""
    try:
        descriptor = _open_folder(folder)
    except FileNotFoundError:
        return None
    try:
        ours = lock(descriptor)
    except OSError:  # no locks here, so nobody removes it
        ours = True
    if ours and folder.exists():
        return descriptor
    os.close(descriptor)
    return None


def _open_folder(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _replaceable(path: Path) -> Path:
    """The file itself, whatever links lead to it; FileError unless it is a regular one or does not exist."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        # A link whose target does not exist yet says where the file is to be.
        return path.resolve()
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "a special file")
        raise _unwritable(path, f"it is {kind}, expected a regular file or none")
    return path.resolve(strict=True)


def _unwritable(path: Path, reason: str) -> FileError:
    return FileError(f"{path} cannot be written: {reason}", reason)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(opened: IO | int) -> bool:
    """Lock an open file or folder until it is closed; False if another process holds the lock."""
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def require_data_folder(path: Path) -> None:
    """Raise DataError unless ``path`` is a folder."""
    if not path.is_dir():
        found = "is no folder" if path.exists() else "does not exist"
        raise DataError(f"{path} {found}, expected the folder of a data set")


def make_folder(path: Path) -> None:
    """Make a folder and those above it, unless they exist; FileError if that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise FileError(f"{path} cannot be made: {reason}", reason) from error


@contextlib.contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file ``path`` for the block, so that one process at a time works on ``what``.

    The system releases the lock when the process ends, however it ends. A file system without locks, such as
    some network file systems, lets the block go on with a warning.

    Raises:
        FileError: another process holds the lock, which the message names; or the file cannot be written.
    """
    with writing(path):
        while True:
            file = path.open("a+", encoding="utf-8")
            try:
                ours = lock(file)
            except OSError as error:
                warning = f"{what} cannot be locked ({error.strerror}): start no second process there"
                say(warning)
                ours = True
            if not ours:
                file.seek(0)
                holder = file.read().strip() or "another process"
                file.close()
                raise FileError(f"{what} is in use by {holder}, expected one at a time", "in use")
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
            file.close()  # the previous holder removed the file between opening and locking it
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Write a JSON file atomically; ValueError if a number in ``value`` is not finite."""
    write_text(path, to_json(value, indent))


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write a CSV atomically: a header with the keys of the first row, then a line for every row.

    Text that spreadsheets would take for a formula gets an apostrophe, which :func:`read_csv` takes away.
    Bytes in names of files that are no text get escapes.
    """

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
            writer.writeheader()
            writer.writerows({name: to_cell(value) for name, value in row.items()} for row in rows)

    write_atomically(path, write)


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV by the names in its header."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        return [
            {name: from_cell(text) if isinstance(text, str) else text for name, text in row.items()}
            for row in reader
        ]
