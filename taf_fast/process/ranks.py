"""The processes that torchrun started: exchange between them, and a common end.

In a single process every function is trivial. Among several, all ranks must call the functions that exchange
something, in the same order.
"""

import base64
import contextlib
import ctypes
import datetime
import importlib
import os
import pickle
import re
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from taf_fast.errors import RunError, UserError

#: How long a rank waits for another in one exchange. The first rank scans the data meanwhile.
TIMEOUT = datetime.timedelta(minutes=30)
#: How long it waits after SIGTERM or SIGINT.
STOP_SECONDS = 60.0
#: After how long without a sign of life a rank counts as lost, as one does whose machine is gone.
LOST_SECONDS = 120.0
#: The status of a rank that has saved its state because another one was asked to stop. With status 0 its own
#: torchrun would take the run as finished; with this one (EX_TEMPFAIL of sysexits.h) it starts it again.
AGAIN = 75
# From one sign of life to the next.
_BEAT_SECONDS = 5.0
# How long a rank that ends waits for the others to learn why.
_END_SECONDS = 30.0
# The key in the store of the error that ends all ranks.
_END = "taf_fast.end"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

T = TypeVar("T")


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the other ranks if torchrun started this process; only the first rank prints.

    The block is a whole command, which ends with SystemExit or an error. An error that ends one rank ends all
    of them: whoever waits for it, or is about to, raises it too. A user error is raised on the first rank,
    which prints, and is SystemExit with status 2 on the others; of any other error the others learn by a
    user error, and the rank that has it raises it as it is. A rank that is killed, or does not answer for
    ``TIMEOUT``, is a user error on each of the others. Waiting where no error can come, as for a GPU, ends
    the process within ``STOP_SECONDS`` after SIGTERM or SIGINT, or after another rank has ended or has given
    no sign of life for ``LOST_SECONDS``.

    Raises:
        RunError: torchrun is to start ranks again, but would let them meet in the store of those before.
    """
    _require_new_store()
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    # If torchrun is killed, nobody is left to stop the ranks, which would go on next to a resumed run.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # Its functions take the group of the time of its import as a default and would keep it, with its threads,
    # beyond destroy_process_group: a process that exits while they run may abort. torch._dynamo imports it.
    importlib.import_module("torch.distributed.nn")
    store, own_rank, ranks = next(dist.rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT, store=store, rank=own_rank, world_size=ranks)
    with contextlib.ExitStack() as stack:
        if not first():
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        try:
            with _watched(store):
                try:
                    yield
                except SystemExit as ended:
                    if not _in_order(ended):
                        raise
                    # torchrun ends all ranks after an error in one, but the first may still have to write.
                    anywhere(False)
                    dist.destroy_process_group()
                    raise
        except BaseException as error:
            if _in_order(error):
                raise
            common = _common_end(store, error)
            if common is error:
                raise
            raise common from None


def _require_new_store() -> None:
    """Raise RunError where ranks that torchrun starts again would wait for those whose addresses are still in
    its store. A machine that joins would wait too, even for a single rank."""
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))
    if not (shared and restarts):
        return
    if os.environ["RANK"] != "0":
        sys.exit(2)
    raise RunError(
        f"--max-restarts {restarts} of torchrun works only with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its "
        "environment, and with --standalone or --rdzv-backend c10d: it lets new processes meet where the old "
        "ones did, and they wait for those"
    )


def _in_order(error: BaseException) -> bool:
    """Whether all ranks end alike, without an error."""
    return isinstance(error, SystemExit) and error.code in (None, 0, AGAIN)


def _common_end(store: dist.Store, error: BaseException) -> BaseException:
    """Let an error of this rank end all others, unless theirs came first; what this rank is to raise."""
    own_rank, ranks, own_place = rank(), count(), place()
    # Gloo has no exception of its own.
    waited = isinstance(error, dist.DistError) or "/gloo/" in str(error)
    if isinstance(error, UserError):
        common: UserError = error
    elif waited:
        common = RunError(
            f"{own_place} waited for another, which has ended or not answered for "
            f"{TIMEOUT.total_seconds() / 60:g} minutes: {_reason(error)}"
        )
    else:
        common = RunError(f"{own_place} ended with {error!r}")
    told = _to_store(common)
    first_told: list[str] = []

    def end() -> None:
        with contextlib.suppress(RuntimeError):  # where the process is gone that held the store
            first_told.append(store.compare_set(_END, "", told).decode())
            # Whoever waits for this rank stops waiting, and reads why.
            dist.destroy_process_group()
            ended = store.add("taf_fast.ended", 1)
            # The first rank may hold the store.
            while own_rank == 0 and not waited and ended < ranks:
                time.sleep(0.05)
                ended = store.add("taf_fast.ended", 0)

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    thread.join(_END_SECONDS)
    if not isinstance(error, UserError) and not waited:
        with contextlib.suppress(OSError):
            os.write(2, f"{own_place}:\n".encode(errors="backslashreplace"))  # a traceback follows
        return error
    if not first_told or (waited and first_told == [told]):
        return common  # on every such rank: the first may be the one that is lost
    return _from_store(first_told[0]) if own_rank == 0 else SystemExit(2)


def _to_store(error: UserError) -> str:
    return base64.b64encode(pickle.dumps(error)).decode()


def _from_store(text: str | bytes) -> UserError:
    return pickle.loads(base64.b64decode(text))


def _reason(error: BaseException) -> str:
    """What a backend says, without its place in the source, which it gives first, and its advice."""
    return re.sub(r"^\[[^]]*\] ", "", str(error)).partition(". ")[0].splitlines()[0]


@contextlib.contextmanager
def _watched(store: dist.Store) -> Iterator[None]:
    """End the process if its main thread does nothing for ``STOP_SECONDS`` after SIGTERM or SIGINT, or after
    another rank has ended or is lost.

    Python runs no handler of a signal while the main thread waits for another rank inside an exchange, and no
    error ends a wait for a GPU that itself waits for a rank that is gone.
    """
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    before = signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    pulse = _Pulse(store)
    arguments = (receiver, threading.get_ident(), pulse, place())
    thread = threading.Thread(target=_end_if_stuck, args=arguments, daemon=True)
    pulse.start()
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(sender)
        thread.join()
        os.close(receiver)
        pulse.end()


class _Pulse(threading.Thread):
    """The signs of life of this rank, and a look at those of the next one and at the error that ends all."""

    def __init__(self, store: dist.Store) -> None:
        super().__init__(daemon=True)
        self._store = store.clone()  # one store answers one thread at a time
        self._own, self._next, self._ranks, self._host = rank(), (rank() + 1) % count(), count(), host()
        self._beats, self._last = 0, b""
        self._seen = self._answered = time.monotonic()
        self._found: str | None = None
        self._ended = threading.Event()

    def run(self) -> None:
        while self._found is None:
            try:
                self._found = self._look()
            except RuntimeError as error:
                self._found = f"the store of the ranks does not answer: {_reason(error)}"
            self._answered = time.monotonic()
            if self._ended.wait(_BEAT_SECONDS):
                return

    def _look(self) -> str | None:
        key = "taf_fast.alive.{}".format
        self._beats += 1
        self._store.set(key(self._own), f"{self._beats} {self._host}")
        if self._store.check([_END]):
            return str(_from_store(self._store.get(_END)))
        beat = self._store.get(key(self._next)) if self._store.check([key(self._next)]) else b""
        now = time.monotonic()
        if beat != self._last:
            self._last, self._seen = beat, now
        if now < self._seen + LOST_SECONDS:
            return None
        on = beat.decode().partition(" ")[2] or "an unknown machine"
        lost = f"rank {self._next} of {self._ranks} on {on} gives no sign of life for {LOST_SECONDS:g} s"
        self._store.compare_set(_END, "", _to_store(RunError(lost)))
        return lost

    def why(self) -> str | None:
        """Why this rank cannot go on; None if nothing is known to be wrong."""
        if self._found is None and time.monotonic() > self._answered + LOST_SECONDS:
            return f"the store of the ranks does not answer for {LOST_SECONDS:g} s"
        return self._found

    def end(self) -> None:
        self._ended.set()
        self.join(1)  # it may wait for the store of a process that hangs


def _end_if_stuck(receiver: int, main_thread: int, pulse: _Pulse, own_place: str) -> None:
    why, status, position, since = None, 2, None, 0.0
    while True:
        if select.select([receiver], [], [], 0.5 if why else _BEAT_SECONDS)[0]:
            numbers = os.read(receiver, 64)
            if not numbers:
                return
            for number in {signal.SIGTERM, signal.SIGINT} & set(numbers) if why is None else ():
                why, status = signal.Signals(number).name, 128 + number
        elif why is None:
            why = pulse.why()
        frame = sys._current_frames().get(main_thread)
        now = frame and (id(frame), frame.f_lasti)
        if why is None or now != position:
            position, since = now, time.monotonic()
        elif time.monotonic() > since + STOP_SECONDS:
            text = f"error: {own_place}: {why}, and no answer for {STOP_SECONDS:g} s: nothing was saved\n"
            os.write(2, text.encode(errors="backslashreplace"))
            os._exit(status)


def count() -> int:
    """The number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this rank, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def host() -> str:
    """The name of this machine."""
    return socket.gethostname()


def place() -> str:
    """This rank in words, with its machine."""
    return f"rank {rank()} of {count()} on {host()}"


def places() -> str:
    """The ranks of every machine in words."""
    hosts = _gather(host())
    found = {name: [str(i) for i, of in enumerate(hosts) if of == name] for name in dict.fromkeys(hosts)}
    return "; ".join(f"rank {', '.join(of)} on {name}" for name, of in found.items())


def first_of_host() -> bool:
    """Whether this is the rank that looks at the files of its machine."""
    return first() or int(os.environ.get("LOCAL_RANK", 0)) == 0


def first() -> bool:
    """Whether this is the rank that writes files and prints."""
    return rank() == 0


def own_device(name: str) -> torch.device:
    """The device of this rank: with several ranks, "cuda" is the rank's own GPU and becomes the current one.

    Raises:
        RunError: ``name`` is a single GPU, and there are several ranks.
        RuntimeError: there is no such device.
    """
    device = torch.device(name)
    if count() == 1 or device.type != "cuda":
        return device
    if device.index is not None:
        raise RunError(f"device must be cpu or cuda for {count()} ranks, got {name}: each has its own GPU")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def own_seed(seed: int, *moment: int) -> int:
    """A different seed for every rank, and for every ``moment``; the first rank's without one is ``seed``."""
    if first() and not moment:
        return seed
    return int(np.random.SeedSequence([seed, *moment, rank()]).generate_state(1)[0])


def share(batch_size: int, parts: int = 1) -> int:
    """The number of clips in each of ``parts`` parts of a rank's share in a step of ``batch_size``.

    Raises:
        RunError: the clips cannot be shared out evenly.
    """
    if batch_size % (count() * parts):
        of_each = f" times the {parts} parts of each" if parts > 1 else ""
        raise RunError(
            f"batch_size must be a multiple of {count() * parts}, the ranks that share it{of_each}, "
            f"got {batch_size}"
        )
    return batch_size // (count() * parts)


def take_first(tensors: list[Tensor]) -> None:
    """Replace every tensor by that of the first rank."""
    if count() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def start_averaging(tensors: list[Tensor]) -> Callable[[], None]:
    """Begin to replace every tensor by its mean over ranks, in one exchange; what is returned waits for it.

    All ranks get the same bits. The tensors are on one device and have one dtype.
    """
    if count() == 1 or not tensors:
        return lambda: None
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    exchange = dist.all_reduce(flat, async_op=True)

    def finish() -> None:
        exchange.wait()
        means = (flat / count()).split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(
            tensors, [mean.view_as(tensor) for tensor, mean in zip(tensors, means, strict=True)]
        )

    return finish


def total(values: list[float]) -> list[float]:
    """The sum of every value over ranks."""
    if count() == 1:
        return values
    sums = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()


def anywhere(flag: bool) -> bool:
    """Whether ``flag`` is true on any rank. No rank goes on before all have called this."""
    return total([flag])[0] > 0


def union(values: dict) -> dict:
    """One dict with the entries of all ranks; of equal keys the last rank's wins."""
    return {key: value for part in _gather(values) for key, value in part.items()}


def from_first(make: Callable[[], T]) -> T:
    """Call ``make`` on the first rank only, and return its result, or raise its user error, on all ranks."""
    with together():
        made = make() if first() else None
    shared: list[Any] = [made]
    if count() > 1:
        dist.broadcast_object_list(shared, src=0, device=torch.device("cpu"))
    return shared[0]


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Raise the first user error that any rank has in the block on all ranks, at its end.

    The ranks stay in step, so that they can save their state; :func:`joined` ends them after other errors.
    """
    error = None
    try:
        yield
    except UserError as caught:
        if caught.known_to_all_ranks:
            raise
        error = caught
    if anywhere(error is not None):
        raise first_error(error)


def first_error(error: UserError | None) -> UserError:
    """The first user error that any rank has, if at least one has one; for all of them to raise."""
    found = next(filter(None, _gather(error)))
    found.known_to_all_ranks = True
    return found


def _gather(value: T) -> list[T]:
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values
