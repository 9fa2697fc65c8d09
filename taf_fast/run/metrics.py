"""The measurements of a run: a file with one JSON object a line, in the order of the steps."""

import os
import zlib
from pathlib import Path

from taf_fast.errors import RunError
from taf_fast.files import write_text, writing
from taf_fast.parsing import parse_json, to_json


class MetricsLog:
    """Appends measurements to a file; the line is in it when ``append`` returns, or FileError.

    ``lines`` is the number of lines so far, and ``checksum`` the CRC-32 of their content without times, so
    that equal runs have equal ones.
    """

    def __init__(self, path: Path):
        self.path = path
        self.lines = self.checksum = 0

    def append(self, **values) -> None:
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(to_json(values) + "\n")
        self._count(values)

    def _count(self, values: dict) -> None:
        self.lines += 1
        lasting = {n: v for n, v in values.items() if n != "time" and not n.endswith("_seconds")}
        self.checksum = zlib.crc32(to_json(lasting).encode(), self.checksum)

    def sync(self) -> None:
        """Have all lines on the disk when this returns, even after a power cut."""
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            os.fsync(file.fileno())

    def rewind(self, lines: int, checksum: int) -> None:
        """Keep only the first ``lines`` lines; a resumed run measures the rest again.

        Raises:
            RunError: the file has fewer lines, or other ones than those of ``checksum``.
        """
        try:
            found = read_metrics(self.path)
        except (OSError, ValueError) as error:
            raise RunError(f"{self.path} is damaged: {error!r}") from None
        if len(found) < lines:
            raise RunError(
                f"{self.path} has {len(found)} lines, but the saved state counts on {lines}: lines were "
                "lost, put the file back or begin again in another folder"
            )
        self.lines = self.checksum = 0
        for values in found[:lines]:
            self._count(values)
        if self.checksum != checksum:
            raise RunError(
                f"{self.path} is damaged, or that of another run: its first {lines} lines are not those that "
                "the saved state counts on"
            )
        write_text(self.path, "".join(to_json(values) + "\n" for values in found[:lines]))


def read_metrics(path: Path) -> list[dict]:
    """The whole lines of a log, without a last one that a kill cut off; none if there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    found = [parse_json(line) for line in lines if line.endswith("\n")]
    for number, values in enumerate(found, 1):
        if not isinstance(values, dict) or any(type(value) not in (int, float) for value in values.values()):
            raise ValueError(f"line {number} must have names and numbers")
    return found
