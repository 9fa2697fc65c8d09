"""Signals that ask to stop: honoured between the steps of a training loop, or by an end at once."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

from taf_fast.errors import Stopped
from taf_fast.process import ranks
from taf_fast.process.progress import Progress


class StopRequest:
    """``with StopRequest() as stop:`` sets ``stop.requested`` on the first SIGTERM, SIGINT or SIGHUP.

    As long as ``stop.at_once`` is set, the first signal also raises Stopped. A second one has its usual
    effect at once, except on several ranks: there a scheduler may signal all processes, and torchrun passes
    its own signal on to them once more. Nested requests all see the signal. Where SIGHUP is ignored, as by
    nohup, it stays so.
    """

    def __init__(self, at_once: bool = False) -> None:
        self.at_once = at_once

    def __enter__(self) -> "StopRequest":
        self.requested = False
        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        self._before: dict[int, Any] = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, self.requested = not self.requested, True
        before = self._before[number]
        if isinstance(getattr(before, "__self__", None), StopRequest):
            before(number, frame)
        elif ranks.count() == 1:
            signal.signal(number, before)
        if first and self.at_once:
            raise Stopped(f"stopped by {signal.Signals(number).name} before the first step")


@contextlib.contextmanager
def ended_by_ctrl_c(progress: Progress) -> Iterator[None]:
    """End the process at once on SIGINT.

    A KeyboardInterrupt could get lost in PyAV. Nothing needs cleaning up: finished work is in its file.
    """

    def end(*_: object) -> None:
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
