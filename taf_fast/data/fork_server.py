"""Processes for decoders, forked from one that has no threads, so that no lock is held, and that has done the
imports.

Signals that ask to stop do not reach them, but for SIGTERM; they end with the process that started them, even
if that is killed.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from types import ModuleType

CONTEXT = multiprocessing.get_context("forkserver")
_STOPS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Where processes of ``CONTEXT`` are started; each of them is to call :func:`started` first."""
    CONTEXT.set_forkserver_preload(["taf_fast.data"])
    resource_tracker.ensure_running()  # it unblocks signals
    # The server of forks would print a traceback if Ctrl-C came during its imports, and must outlast signals
    # that its parent acts on only after a while.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    # The main module would be run again in each process, all of it if it is a script without a guard.
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def warm_up() -> None:
    """Have the imports done in the background."""
    with starting():
        forkserver.ensure_running()


def started(*stopped_by: int) -> None:
    """End this process with the one that started it, and at once on SIGTERM and on the signals
    ``stopped_by``."""
    for number in stopped_by:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, *stopped_by})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
