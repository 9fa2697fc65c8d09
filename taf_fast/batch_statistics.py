"""Batch statistics as data: take them out of one forward, hold them fixed in another.

Eq. 6 is a gradient per clip, but batch norm couples the clips of a batch. With the statistics of
the clean forward held constant the coupling is gone, and any subset of the clips can be attacked
alone, at the subset's cost. Both modes see every call of ``torch.nn.functional.batch_norm`` and
need nothing of the model; several calls of one layer are told apart by their order.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode


class Statistics(NamedTuple):
    """What one batch norm normalised with: mean and biased variance, both [C]; and what they are of, where
    that was kept."""

    mean: Tensor
    variance: Tensor
    input: Tensor | None = None


class _BatchNormMode(TorchFunctionMode):
    """Answers every ``F.batch_norm`` with the subclass's ``_batch_norm``, of the same signature."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class RecordStatistics(_BatchNormMode):
    """Collects in ``calls``, in order, the statistics every batch norm used; changes no result.

    Args:
        keep_inputs: with what batch statistics are of.
    """

    def __init__(self, keep_inputs: bool = False):
        super().__init__()
        self.calls: list[Statistics] = []
        self._keep_inputs = keep_inputs

    def _batch_norm(
        self, x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
    ):
        if not training:
            self.calls.append(Statistics(running_mean, running_var))
            return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
        if x.numel() == x.shape[1]:
            raise ValueError(
                f"batch norm needs more than 1 value per channel when training, got input {list(x.shape)}"
            )
        y, mean, invstd = torch.native_batch_norm(
            x, weight, bias, running_mean, running_var, True, momentum, eps
        )
        kept = x.detach() if self._keep_inputs else None
        self.calls.append(Statistics(mean.detach(), invstd.detach().pow(-2) - eps, kept))
        return y


class FreezeStatistics(_BatchNormMode):
    """Makes every batch norm use recorded statistics, in order, as constants."""

    def __init__(self, calls: list[Statistics]):
        super().__init__()
        self.calls, self.used = calls, 0

    def _batch_norm(
        self, x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
    ):
        mean, variance, _ = self.calls[self.used]
        self.used += 1
        return F.batch_norm(x, mean, variance, weight, bias, False, momentum, eps)


@contextmanager
def running_statistics_untouched(model: nn.Module) -> Iterator[None]:
    """Within this context no forward of ``model`` changes running statistics or their counters."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
