"""Progress as a bar on a terminal, as plain lines anywhere else."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from taf_fast.plain import printable, say

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Shows how much of a task is done: ``with Progress("fine-tuning", total) as progress: ...``."""

    def __init__(self, title: str, total: int) -> None:
        self.title = printable(title)
        self.total = total
        self._bar: RichProgress | None = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
            self._bar = RichProgress(
                *columns,
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=Console(stderr=True, emoji=False),
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, note="")
        self._started = self._printed = time.monotonic()
        return self

    def update(self, done: int, note: str = "") -> None:
        """Show that ``done`` of ``total`` are done, with a note such as "loss 1.2"."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=printable(note))
            return
        now = time.monotonic()
        if done == self.total or now - self._printed >= _SECONDS_BETWEEN_LINES:
            self._printed = now
            say(f"{self.title} {done}/{self.total} {now - self._started:.0f}s {note}".rstrip())

    def line(self, text: str) -> None:
        """Print a line that stays, above the bar if there is one."""
        text = printable(text)
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            say(text)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
