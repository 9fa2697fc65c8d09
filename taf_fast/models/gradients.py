"""Gradients of a step that takes more than one backward."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.graph import get_gradient_edge


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


def taken_now(loss: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """``loss``, a scalar, whose backward adds the gradients that it has now: they are computed here, and its
    graph is freed. Only ``inputs`` get one. Their hooks run in that backward alone.

    Raises:
        RuntimeError: in a backward with ``create_graph=True``, for there is no graph to differentiate again.
    """
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    with _without_hooks(wanted):
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    return _Taken.apply(loss.detach(), gradients, *wanted)


def same_now(loss: Tensor, inputs: Sequence[Tensor]) -> bool:
    """Whether :func:`taken_now` of ``loss`` would change no gradient: no other leaf gets one, and none is
    float16 on its way, which would need the scale of the later backward."""
    if any(tensor.dtype == torch.float16 for tensor in inputs):
        return False
    seen = {get_gradient_edge(tensor).node for tensor in inputs if tensor.requires_grad}
    nodes = [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        if hasattr(node, "variable"):  # accumulates into a leaf
            return False
        if any(gradient.dtype == torch.float16 for gradient in node._input_metadata):
            return False
        seen.add(node)
        nodes.extend(following for following, _ in node.next_functions)
    return True


@contextmanager
def _without_hooks(tensors: Sequence[Tensor]) -> Iterator[None]:
    hooks = [tensor._backward_hooks for tensor in tensors if tensor._backward_hooks]
    kept = [dict(each) for each in hooks]
    for each in hooks:
        each.clear()
    try:
        yield
    finally:
        for each, before in zip(hooks, kept, strict=True):
            each.update(before)


class _Taken(Function):
    @staticmethod
    def forward(ctx, loss, gradients, *inputs):
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a TAF step's loss cannot be differentiated twice (create_graph=True): the clean part of its "
                "graph is freed in the forward"
            )
        scaled: list[Tensor | None] = list(ctx.gradients)
        for device in {gradient.device for gradient in scaled if gradient is not None}:
            here = [
                i for i, gradient in enumerate(scaled) if gradient is not None and gradient.device == device
            ]
            products = torch._foreach_mul([ctx.gradients[i] for i in here], grad.to(device))
            for i, product in zip(here, products, strict=True):
                scaled[i] = product
        return None, None, *scaled
