"""Commands that meet a fault: how often, run how, and what is called held."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")

#: No command of these tests takes a quarter of this, even on a busy machine.
SECONDS = 180


#: Of tests that take a good part of a minute.
campaign = pytest.mark.skipif(not os.environ.get("TAF_FAST_FAULTS"), reason="part of make faults")


def often(few: T, many: T) -> T:
    """``few`` in make test, ``many`` in make faults."""
    return many if os.environ.get("TAF_FAST_FAULTS") else few


class Tally:
    """How many faults of each kind were tried, and how many did not hold."""

    def __init__(self):
        self.tried: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()

    @contextlib.contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        self.tried[kind] += 1
        try:
            yield
        except BaseException:
            self.failed[kind] += 1
            raise


@dataclass
class Ended:
    """What came of a command: ``status`` is None if it did not end by itself, negative for a signal."""

    status: int | None
    printed: str
    errors: str

    def held(self) -> bool:
        """True if the command did its work, False if it refused with one error; else AssertionError."""
        assert self.status is not None, f"still runs after {SECONDS} s"
        assert "Traceback" not in self.errors, self.errors
        assert self.status in (0, 2), (self.status, self.errors)
        if self.status == 2:
            # Warnings may come before it.
            assert self.errors.removesuffix("\n").rpartition("\n")[2].startswith("error: "), self.errors
        return self.status == 0


class Commands:
    """Starts commands in processes that are forked from one that has done the imports."""

    def __enter__(self) -> "Commands":
        warm = [sys.executable, str(Path(__file__).with_name("warm.py"))]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._warm = subprocess.Popen(warm, env=environment, **pipes)
        self._own = tempfile.TemporaryDirectory(prefix="taf_fast-faults-")
        self._events = Path(self._own.name) / "events"
        return self

    def __exit__(self, *_: object) -> None:
        self._warm.communicate()
        self._own.cleanup()

    def _ask(self, **job):
        print(json.dumps(job), file=self._warm.stdin, flush=True)
        return json.loads(self._warm.stdout.readline())

    def start(self, arguments, folder: Path | None = None, **job) -> int:
        """The process id of a new command, whose steps of writing in ``folder`` are counted."""
        if folder is not None:
            self._events.unlink(missing_ok=True)
            job |= {"folder": str(folder), "events": str(self._events)}
        return self._ask(start=[os.fspath(a) if isinstance(a, Path) else str(a) for a in arguments], **job)

    def wait(self, process: int, seconds: float = SECONDS) -> Ended:
        return Ended(*self._ask(wait=process, seconds=seconds))

    def run(self, arguments, seconds: float = SECONDS, **job) -> Ended:
        return self.wait(self.start(arguments, **job), seconds)

    def succeed(self, arguments, **job) -> str:
        """Run a command that must succeed; what it printed."""
        ended = self.run(arguments, **job)
        assert ended.held(), ended.errors
        return ended.printed

    def steps(self) -> int:
        """The number of steps of writing of the command that was started last."""
        return self._events.stat().st_size if self._events.exists() else 0


def temporaries(*folders: Path) -> list[Path]:
    """Temporary files that were left behind."""
    return [path for folder in folders for path in folder.rglob(".taf_fast-*")]


def contents(folder: Path, names: tuple[str, ...]) -> dict[str, object]:
    """The files of a run that do not depend on the time, by their names; without the times in its metrics."""
    paths = {name: folder / name for name in names}
    found: dict[str, object] = {n: path.read_bytes() if path.exists() else None for n, path in paths.items()}
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    found["metrics"] = [{name: value for name, value in line.items() if not _is_time(name)} for line in lines]
    return found


def _is_time(name: str) -> bool:
    return name == "time" or name.endswith("_seconds")


RESULTS = (
    *("model.safetensors", "best.safetensors", "state.safetensors"),
    *("predictions.csv", "quarantine.json"),
)


def result(folder: Path) -> dict[str, object]:
    """All that a run gives, to compare two runs."""
    return contents(folder, RESULTS)
