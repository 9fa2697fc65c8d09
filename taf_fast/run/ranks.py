"""The processes that torchrun started: what they share, and how they end together.

In a process that is alone every function is trivial. Elsewhere those that share something have to be called
by all ranks, in the same order.
"""

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from taf_fast.data import DataError
from taf_fast.models import CheckpointError
from taf_fast.run.config import RunError

# What the user can mend, and is told in one line.
USER_ERRORS = (RunError, DataError, CheckpointError, ImportError)

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

T = TypeVar("T")


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Be one of the ranks where torchrun started this process; only the first of them prints.

    For the whole of a command, which ends with SystemExit.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    # If torchrun is killed nobody is left to stop the ranks, and the run could be resumed beside them.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    with contextlib.ExitStack() as stack:
        if not first():
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        try:
            yield
        except SystemExit:
            # torchrun ends all when one ends with an error, but the first may have more to write or to say.
            anywhere(False)
            dist.destroy_process_group()
            raise


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def first() -> bool:
    """Whether this is the rank that writes files and prints."""
    return rank() == 0


def own_device(name: str) -> torch.device:
    """The device of this rank: of several, "cuda" is the GPU of its own, which becomes the current one.

    Raises:
        RunError: ``name`` is one GPU for several ranks.
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


def own_seed(seed: int) -> int:
    """Another seed for every rank; the first one's is ``seed``."""
    return seed if first() else int(np.random.SeedSequence([seed, rank()]).generate_state(1)[0])


def share(batch_size: int) -> int:
    """The clips of this rank in a step of ``batch_size``; RunError where ranks cannot have equally many."""
    if batch_size % count():
        raise RunError(
            f"batch_size must be a multiple of {count()}, the ranks that share it, got {batch_size}"
        )
    return batch_size // count()


def average_(tensors: list[Tensor]) -> None:
    """Put the mean over ranks in place of every tensor, in one exchange between their devices.

    All ranks get the same bits.
    """
    if count() == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= count()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def total(values: list[float]) -> list[float]:
    """The sum over ranks of every value."""
    if count() == 1:
        return values
    sums = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()


def anywhere(flag: bool) -> bool:
    """Whether it is true on any rank. None goes on before all have come here."""
    return total([flag])[0] > 0


def union(values: dict) -> dict:
    """The entries of all ranks."""
    return {key: value for part in _gather(values) for key, value in part.items()}


def from_first(make: Callable[[], T]) -> T:
    """What ``make`` returns on the first rank, the only one to call it; or the user error it raises there."""
    with together():
        made = [make() if first() else None]
    if count() > 1:
        dist.broadcast_object_list(made, src=0, device=torch.device("cpu"))
    return made[0]


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Raises on all ranks, at the end of the block, the first user error of any of them in it.

    A rank whose error ends an outer block is heard by those that come to the end of an inner one.
    """
    error = None
    try:
        yield
    except USER_ERRORS as caught:
        if hasattr(caught, "known_to_all_ranks"):
            raise
        error = caught
    if anywhere(error is not None):
        error = next(filter(None, _gather(error)))
        error.known_to_all_ranks = True
        raise error


def _gather(value: T) -> list[T]:
    if count() == 1:
        return [value]
    values = [None] * count()
    dist.all_gather_object(values, value)
    return values
