"""Applying a function to many items, in threads or in processes."""

import contextlib
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection, wait

from taf_fast.data.fork_server import CONTEXT, started, starting

# Items that a thread takes at once: some functions take less time than handing an item over.
_THREAD_PART = 64
# Items that a process takes at once.
_PROCESS_PART = 8


def in_threads(function: Callable, items: Sequence, workers: int) -> Iterator:
    """``function(item)`` for all ``items``, in their order. If the caller stops, so do the threads."""
    stopped = threading.Event()

    def each(part: Sequence) -> list:
        return [function(item) for item in part if not stopped.is_set()]

    with ThreadPoolExecutor(workers) as pool:
        try:
            for results in pool.map(each, _parts(items, _THREAD_PART)):
                yield from results
        finally:
            stopped.set()


def in_processes(function: Callable, items: Sequence, workers: int) -> Iterator[tuple]:
    """(item, ``function(item)``) for all ``items``, in the order in which they get done.

    The result is None if the function crashed its process, as decoders can; no other item is affected.
    Exceptions are raised here. With one worker, or one item, everything runs in this process, which a crash
    ends. A kill of all processes at once leaves nothing behind.
    """
    if min(workers, len(items)) <= 1:
        for item in items:
            yield item, function(item)
        return
    left = deque(_parts(items, _PROCESS_PART))
    # A part at a time for each process, by its end of the pipe. Pipes and not the standard library's pool:
    # its semaphores have names, which a kill leaves in /dev/shm.
    begun: dict[Connection, Sequence] = {}
    with contextlib.ExitStack() as stack:
        while left or begun:
            while left and len(begun) < workers:
                _send(stack.enter_context(_process(function)), left, begun)
            for connection in wait(list(begun)):
                assert isinstance(connection, Connection)
                part = begun.pop(connection)
                try:
                    results = connection.recv()
                except (EOFError, ConnectionResetError):
                    if len(part) == 1:
                        yield part[0], None
                    else:
                        left.extend([item] for item in part)
                    continue
                if isinstance(results, Exception):
                    raise results
                if left:  # no process waits for what happens to the results
                    _send(connection, left, begun)
                yield from zip(part, results, strict=True)


def _send(connection: Connection, left: deque[Sequence], begun: dict[Connection, Sequence]) -> None:
    begun[connection] = left.popleft()
    with contextlib.suppress(BrokenPipeError):  # reading from it tells
        connection.send(begun[connection])


def _parts(items: Sequence, length: int) -> list[Sequence]:
    return [items[start : start + length] for start in range(0, len(items), length)]


def _each(function: Callable, items: Sequence) -> list:
    return [function(item) for item in items]


@contextlib.contextmanager
def _process(function: Callable) -> Iterator[Connection]:
    """A process that answers every part that it is sent."""
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_answer, args=(theirs, function), daemon=True)
    with starting():
        process.start()
    theirs.close()
    with ours:
        try:
            yield ours
        finally:
            process.terminate()
            process.join()


def _answer(connection: Connection, function: Callable) -> None:
    started(signal.SIGINT, signal.SIGHUP)
    while True:
        part = connection.recv()
        try:
            connection.send(_each(function, part))
        except Exception as error:
            connection.send(error)
