"""What SIGTERM and SIGINT do: a wish that a training loop grants between two steps, or the end at once."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from taf_fast.run import ranks
from taf_fast.run.progress import Progress


class StopRequest:
    """``with StopRequest() as stop:`` sets ``stop.requested`` on the first SIGTERM or SIGINT.

    A second one has its usual effect at once, except on ranks: a scheduler may signal all processes, and
    torchrun passes its own signal on to those that have had one. Of one inside another, both hear it.
    """

    def __enter__(self) -> "StopRequest":
        self.requested = False
        self._before = {
            number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        before = self._before[number]
        if isinstance(getattr(before, "__self__", None), StopRequest):
            before(number, frame)
        elif ranks.count() == 1:
            signal.signal(number, before)


@contextlib.contextmanager
def ended_by_ctrl_c(progress: Progress) -> Iterator[None]:
    """Ends the process there and then. A KeyboardInterrupt could get lost in PyAV, and there is nothing to
    clean up: what is done is in the file."""

    def end(*_) -> None:
        try:
            progress.line("stopped; the same command goes on from here")
            progress.__exit__()
        finally:
            os._exit(130)

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
