"""A step whose gradients are averaged over ranks while they are computed."""

import contextlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from taf_fast.models.gradients import reaching
from taf_fast.models.modules import parameters_of
from taf_fast.process import ranks
from taf_fast.step import PlainStep, StepOutput, TAFStep


def _in_bfloat16(_: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """What torch's bf16_compress_hook does, which DistributedDataParallel refuses on a CPU."""
    gradients = bucket.buffer()
    share = gradients.bfloat16() / ranks.count()
    exchange = dist.all_reduce(share, async_op=True).get_future()
    return exchange.then(lambda done: gradients.copy_(done.value()[0]))


_HOOKS = {"float32": allreduce_hook, "bfloat16": _in_bfloat16}


class ReducedStep:
    """A step of several ranks, by DistributedDataParallel: a bucket of gradients is averaged as soon as its
    last one is there, while the backward goes on. Gradients are views into buckets, so nothing is copied.

    All ranks begin with the parameters and buffers of the first.

    Args:
        step: makes the gradients; each rank calls it equally often.
        averaged: buffers that are averaged with the gradients, on the device of the parameters.
        precision: in which gradients are exchanged, "float32" or "bfloat16".
    """

    def __init__(self, step: PlainStep | TAFStep, averaged: Sequence[Tensor], precision: str) -> None:
        self._averaged = list(averaged)
        self._lean = isinstance(step, TAFStep)
        with warnings.catch_warnings():  # the name that torch prefers from 2.13 on is unknown to 2.11
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            self._engine = DistributedDataParallel(
                _Reached(step), broadcast_buffers=False, gradient_as_bucket_view=True
            )
        ranks.take_first(list(step.buffers()))
        self._engine.register_comm_hook(None, _HOOKS[precision])
        # The engine lays its buckets out, when its second forward begins, in the order in which the first
        # backward reached the parameters. The place of a gradient decides how its sum over three or more
        # ranks is rounded, so that this order must not depend on the clips.
        for _ in range(2):
            self._engine().backward()

    def zero_grad(self) -> None:
        """Set the gradients to 0, where they are."""
        torch._foreach_zero_([p.grad for p in self._engine.parameters() if p.grad is not None])

    def accumulate_grads(
        self,
        clips: Tensor,
        labels: Tensor,
        generator: torch.Generator | None = None,
        backward: Callable[[Tensor], Any] = Tensor.backward,
        last: bool = True,
    ) -> StepOutput:
        """As :meth:`taf_fast.TAFStep.accumulate_grads`. After the ``last`` call of an optimiser's step, the
        gradients of all its calls, and the buffers, are their means over ranks."""
        with contextlib.nullcontext() if last else self._engine.no_sync():
            # The clean backward runs within the forward, where nothing is reduced yet.
            out = self._engine(clips, labels, generator, *([backward] if self._lean else []))
            finish = ranks.start_averaging(self._averaged) if last else None
            backward(out["loss"])
        if finish is not None:
            finish()
        return out | {"loss": out["loss"].detach()}


class _Reached(nn.Module):
    """The step, whose loss reaches all parameters, as that of a TAF step with ``backward`` does by itself;
    without arguments 0, whose backward reaches them one by one and the last one first, about as the step's
    backward does."""

    def __init__(self, step: PlainStep | TAFStep) -> None:
        super().__init__()
        self.step = step

    def forward(self, *arguments: Any) -> Any:
        parameters = [parameter for parameter in parameters_of(self.step) if parameter.requires_grad]
        if arguments:
            out = self.step(*arguments)
            plain = isinstance(self.step, PlainStep)
            return out | {"loss": reaching(out["loss"], parameters)} if plain else out
        zero = parameters[0].new_zeros((), requires_grad=True)
        for parameter in parameters:
            zero = reaching(zero, [parameter])
        return zero
