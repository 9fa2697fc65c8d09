"""Gradients of a step that takes more than one backward."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd import Function


@contextmanager
def all_or_nothing(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """What is added to gradients in this context is added at its end, and not at all after an error."""
    before = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
    except BaseException:
        for parameter, grad in zip(parameters, before, strict=True):
            parameter.grad = grad
        raise
    sums, new = [], []
    for parameter, grad in zip(parameters, before, strict=True):
        if grad is not None and parameter.grad is not None:
            sums.append(grad)
            new.append(parameter.grad)
        if grad is not None:
            parameter.grad = grad
    if sums:
        torch._foreach_add_(sums, new)


def reaching(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """``loss``, whose backward now reaches all ``parameters`` and leaves the gradients of those that it did
    not reach as they are: DistributedDataParallel reduces the gradient of a parameter when a backward reaches
    it, and ``fully_shard`` all of them after a backward."""
    return _Reaching.apply(loss, *parameters)


class _Reaching(Function):
    @staticmethod
    def forward(ctx, loss, *parameters):
        ctx.count = len(parameters)
        return loss.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad, *[None] * ctx.count
