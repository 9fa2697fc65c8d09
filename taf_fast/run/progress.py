"""Progress as a bar on a terminal, as plain lines anywhere else."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """``with Progress("fine-tuning", total) as progress: progress.update(done, "loss 1.2")``."""

    def __init__(self, title: str, total: int):
        self.title, self.total = title, total

    def __enter__(self) -> "Progress":
        self._bar = None
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._bar = RichProgress(
                *columns,
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, note="")
        self._started = self._printed = time.monotonic()
        return self

    def update(self, done: int, note: str = "") -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
            return
        now = time.monotonic()
        if done == self.total or now - self._printed >= _SECONDS_BETWEEN_LINES:
            self._printed = now
            print(f"{self.title} {done}/{self.total} {now - self._started:.0f}s {note}".rstrip(), flush=True)

    def line(self, text: str) -> None:
        """Print a line that stays, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, flush=True)

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.stop()
