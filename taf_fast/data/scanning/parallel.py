"""A function of many items, in threads and in processes."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial

# Items that a thread takes at once: some functions take less time than handing an item over.
_THREAD_PART = 64
# Items that a process takes at once, and such parts that are handed out per process: enough that none waits
# for this one, and few enough that a large item holds up no others.
_PROCESS_PART, _PARTS_AHEAD = 8, 3


def in_threads(function: Callable, items: Sequence, workers: int) -> Iterator:
    """``function(item)`` of all ``items``, in their order."""
    with ThreadPoolExecutor(workers) as pool:
        for results in pool.map(partial(_each, function), _parts(items, _THREAD_PART)):
            yield from results


def in_processes(function: Callable, items: Sequence, workers: int) -> Iterator[tuple]:
    """(item, ``function(item)``) of all ``items`` as they get done, in no order.

    The result is None where the function crashed its process, as a decoder can, which costs no other item
    its result; exceptions are raised here. With one worker, or one item, all happens in this process, which
    no crash survives.
    """
    if min(workers, len(items)) <= 1:
        for item in items:
            yield item, function(item)
        return
    left = deque(_parts(items, _PROCESS_PART))
    while left:
        begun: dict[Future, Sequence] = {}
        with _processes(min(workers, len(left))) as pool:
            try:
                while left or begun:
                    while left and len(begun) < _PARTS_AHEAD * workers:
                        future = pool.submit(_each, function, left[0])
                        begun[future] = left.popleft()
                    for future in wait(begun, return_when=FIRST_COMPLETED).done:
                        results = future.result()
                        yield from zip(begun.pop(future), results, strict=True)
            except BrokenProcessPool:
                pass
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        for part in begun.values():
            for item in part:
                yield item, _alone(function, item)


def _parts(items: Sequence, length: int) -> list[Sequence]:
    return [items[start : start + length] for start in range(0, len(items), length)]


def _each(function: Callable, items: Sequence) -> list:
    return [function(item) for item in items]


def _alone(function: Callable, item):
    with _processes(1) as pool:
        try:
            return pool.submit(function, item).result()
        except BrokenProcessPool:
            return None


def _processes(workers: int) -> ProcessPoolExecutor:
    # Forked from a process without threads, whose locks nobody can hold, and which imports things only once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(workers, context, _start)


def _start() -> None:
    # Ctrl-C and the end of the process that asked, however it comes, end this one at once.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
