"""The modules of a model, found by one walk in each training step."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


class _Walks(threading.local):
    def __init__(self):
        self.known: dict[nn.Module, tuple[nn.Module, ...]] = {}


_walks = _Walks()


def modules_of(model: nn.Module) -> tuple[nn.Module, ...]:
    """``model.modules()``: the model itself, and what it consists of."""
    known = _walks.known.get(model)
    return tuple(model.modules()) if known is None else known


@contextmanager
def walked_once(model: nn.Module) -> Iterator[None]:
    """Within this context, in this thread, the model consists of the modules that it has now: a walk through
    a ResNet-50 takes as long as the launch of 20 kernels."""
    outer = _walks.known
    _walks.known = outer | {model: modules_of(model)}
    try:
        yield
    finally:
        _walks.known = outer


def classes_of(model: nn.Module) -> tuple[type, ...]:
    """The class of each module."""
    return tuple([type(module) for module in modules_of(model)])


def modes_of(model: nn.Module) -> tuple[bool, ...]:
    """Whether each module is in train mode."""
    return tuple([module.training for module in modules_of(model)])


def parameters_of(model: nn.Module) -> list[nn.Parameter]:
    """``model.parameters()``, each once."""
    every = [p for module in modules_of(model) for p in module._parameters.values() if p is not None]
    return list(dict.fromkeys(every))


def base_of(kind: type, *names: str) -> str | None:
    """The first of the class and its bases that has one of the names, by name: a package that nothing has
    imported needs no import."""
    return next((base.__name__ for base in kind.__mro__ if base.__name__ in names), None)
