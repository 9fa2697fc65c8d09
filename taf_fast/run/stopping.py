"""Turns SIGTERM and SIGINT into a wish that the loop grants between two steps."""

import signal
from types import FrameType


class StopRequest:
    """``with StopRequest() as stop:`` sets ``stop.requested`` on the first SIGTERM or SIGINT.

    A second one has its usual effect at once.
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

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(number, self._before[number])
