"""Batch statistics as data: record them in one forward, hold them constant in another.

Eq. 6 is a gradient per clip, but batch norm couples the clips of a batch. With the statistics of
the clean forward held constant, the coupling is gone, and any subset of the clips can be attacked
alone, at the cost of the subset. Both modes intercept every call of ``torch.nn.functional.batch_norm``
and ask nothing of the model; the order of the calls tells several calls of one layer apart.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from taf_fast.models.recomputation import recomputed_within


class Statistics(NamedTuple):
    """What one batch norm normalised with: ``mean`` [C]; either ``variance`` [C], biased, or ``invstd`` [C],
    1/sqrt(variance + eps), and None for the other; ``eps``; and the tensor they were computed from, if it was
    kept."""

    mean: Tensor
    variance: Tensor | None
    invstd: Tensor | None
    eps: float
    input: Tensor | None = None


def variances(calls: list[Statistics]) -> list[Tensor]:
    """The variance [C] of each batch norm, those of train mode computed together."""
    eps = [statistics.eps for statistics in calls if statistics.invstd is not None]
    computed = [statistics.invstd for statistics in calls if statistics.invstd is not None]
    if computed:
        computed = list(torch._foreach_pow(computed, -2))
        torch._foreach_sub_(computed, eps)
    rest = iter(computed)
    return [next(rest) if statistics.variance is None else statistics.variance for statistics in calls]


def inverse_deviations(calls: list[Statistics]) -> list[Tensor]:
    """1/sqrt(variance + eps), [C], of each batch norm."""
    given = [s.invstd if s.variance is None else torch.rsqrt(s.variance + s.eps) for s in calls]
    return [values for values in given if values is not None]


class SingleValueError(ValueError):
    """A batch norm in train mode got one value per channel, which has no variance."""


@contextmanager
def single_values_named() -> Iterator[None]:
    """Within this context, torch's error of that kind is a :class:`SingleValueError`."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise SingleValueError(*error.args) from None


class _BatchNormMode(TorchFunctionMode):
    """Answers every ``F.batch_norm`` with the subclass's ``_batch_norm``."""

    def __init__(self):
        super().__init__()
        self._recomputed = ExitStack()

    def __enter__(self):
        self._recomputed.enter_context(recomputed_within(self.again))
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        self._recomputed.close()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _batch_norm(
        self, x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
    ):
        """With the signature of ``F.batch_norm``."""
        raise NotImplementedError

    def again(self) -> Callable[[], AbstractContextManager]:
        """The context for what is recomputed of the forward from here on."""
        raise NotImplementedError


class RecordStatistics(_BatchNormMode):
    """Collects in ``calls``, in order, the statistics that every batch norm used; changes no result.

    Args:
        keep_inputs: also keep the input of each batch norm in train mode.
    """

    def __init__(self, keep_inputs: bool = False):
        super().__init__()
        self.calls: list[Statistics] = []
        self.keep_inputs = keep_inputs

    @cached_property
    def constant(self) -> "FreezeStatistics":
        """The context for forwards with these statistics, once all are recorded, as constants."""
        return FreezeStatistics(self.calls)

    def again(self) -> Callable[[], AbstractContextManager]:
        # A recomputation has to save the same tensors, thus run the same operations.
        return RecordStatistics

    def _batch_norm(
        self, x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
    ):
        if not training:
            self.calls.append(Statistics(running_mean, running_var, None, eps))
            return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
        if x.numel() == x.shape[1]:
            raise SingleValueError(
                f"batch norm needs more than 1 value per channel when training, got input {list(x.shape)}"
            )
        y, mean, invstd = torch.native_batch_norm(
            x, weight, bias, running_mean, running_var, True, momentum, eps
        )
        kept = x.detach() if self.keep_inputs else None
        self.calls.append(Statistics(mean.detach(), None, invstd.detach(), eps, kept))
        return y


class FreezeStatistics(_BatchNormMode):
    """Makes every batch norm use recorded statistics, in order, as constants.

    Args:
        calls: of the recording.
        used: how many of them come before this forward.
        variance: of each, if they were computed before.
    """

    def __init__(self, calls: list[Statistics], used: int = 0, variance: list[Tensor] | None = None):
        super().__init__()
        self.calls = calls
        self.used = self._before = used
        self._variances = variances(calls) if variance is None else variance

    def __enter__(self):
        self.used = self._before
        return super().__enter__()

    def again(self) -> Callable[[], AbstractContextManager]:
        # Not computed again: a recomputation has to run the operations of its forward.
        return partial(FreezeStatistics, self.calls, self.used, self._variances)

    def _batch_norm(
        self, x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
    ):
        mean, variance = self.calls[self.used].mean, self._variances[self.used]
        self.used += 1
        # Not F.batch_norm: in a recomputation this context is within that of the forward.
        cudnn = torch.backends.cudnn.enabled
        return torch.batch_norm(x, weight, bias, mean, variance, False, momentum, eps, cudnn)
