"""The counters of batch norms, ``num_batches_tracked``, moved together instead of one by one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm

from taf_fast.models.dual_batch_norm import plain_class
from taf_fast.models.modules import modules_of
from taf_fast.models.recomputation import checkpointed_selectively


class _Count:
    """Stands in for a ``counter`` of a batch norm, on the host."""

    def __init__(self, counter: Tensor):
        self.counter = counter
        self.batches = 0

    def add_(self, batches: int) -> None:
        # What is checkpointed is not compiled.
        if not torch.compiler.is_compiling() and checkpointed_selectively():
            self.counter.add_(batches)
        else:
            self.batches += batches


@contextmanager
def counted_at_once(model: nn.Module) -> Iterator[None]:
    """At the end of this context, ``num_batches_tracked`` of each batch norm of ``model`` is as after the
    forwards in it. A batch norm would launch a kernel to add 1 to it; here all take one."""
    norms: list[Any] = [module for module in modules_of(model) if _only_counts(module)]
    # Not the attribute: on the adversarial path, that of a batch norm is its twin's.
    counts = [_Count(norm._buffers["num_batches_tracked"]) for norm in norms]
    for norm, count in zip(norms, counts, strict=True):
        # Not as a buffer, which torch.compile takes for a tensor.
        norm._buffers["num_batches_tracked"] = None
        vars(norm)["num_batches_tracked"] = count
    try:
        yield
    finally:
        for norm, count in zip(norms, counts, strict=True):
            del vars(norm)["num_batches_tracked"]
            norm._buffers["num_batches_tracked"] = count.counter
        moved = [count for count in counts if count.batches]
        if moved:
            torch._foreach_add_([count.counter for count in moved], [count.batches for count in moved])


def _only_counts(module: nn.Module) -> bool:
    """Whether it is a batch norm of torch's that adds to its counter in a forward, and does not read it."""
    return (
        isinstance(module, _BatchNorm)
        and plain_class(module).forward in (_BatchNorm.forward, SyncBatchNorm.forward)
        and module.training
        and module.track_running_stats
        and module._buffers.get("num_batches_tracked") is not None
        and module.momentum is not None
    )
