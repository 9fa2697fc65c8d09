"""Two sets of batch-norm layers over one set of weights (Xie et al., 2020; the TAF paper's dual BN).

Every batch norm keeps its own parameters, statistics and keys and gets a twin, ``adversarial``,
that normalises clips from the other distribution. The path is chosen explicitly, never from a
clip's position in the batch. The modules stay where they are and keep their class as a base, so
optimisers, hooks, aliases and ``isinstance`` checks hold on; only the twins come and go.
"""

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Dual:
    """Mixed in front of a batch norm's own class by :func:`add_adversarial_bn`."""

    adversarial: nn.Module
    on_adversarial_path: bool

    def forward(self, x: Tensor) -> Tensor:
        if self.on_adversarial_path:
            return self.adversarial(x)
        return super().forward(x)

    def __reduce_ex__(self, protocol):
        # A class made at run time is not where pickle would look for it.
        _, _, *state = super().__reduce_ex__(protocol)
        return _unfilled, (_plain_class(self),), *state


@functools.cache
def _dual_class(plain: type) -> type:
    return type(f"Dual{plain.__name__}", (_Dual, plain), {})


def _plain_class(norm: _Dual) -> type:
    return type(norm).__mro__[2]


def _unfilled(plain: type) -> _Dual:
    dual = _dual_class(plain)
    return dual.__new__(dual)


def _duals(model: nn.Module) -> list[_Dual]:
    return [module for module in model.modules() if isinstance(module, _Dual)]


def add_adversarial_bn(model: nn.Module) -> nn.Module:
    """Give every batch norm of ``model`` an auxiliary twin, in place.

    A twin starts as a copy: affine parameters, running statistics and mode. The keys the model
    had stay as they are; the twins add ``<batch norm>.adversarial.*``. Build the optimiser
    afterwards, so that it holds the twins' parameters too.

    Args:
        model: any module; batch norms of every kind (1d, 2d, 3d, synchronised, subclasses) count.

    Returns:
        ``model``. One without batch norm is returned as it is: both paths are then the same.

    Raises:
        ValueError: the model has adversarial batch norms already.
    """
    if _duals(model):
        raise ValueError("the model has adversarial batch norms already: call add_adversarial_bn once")
    for norm in [module for module in model.modules() if isinstance(module, _BatchNorm)]:
        norm.adversarial = copy.deepcopy(norm)
        norm.on_adversarial_path = False
        norm.__class__ = _dual_class(type(norm))
    return model


def strip_adversarial_bn(model: nn.Module) -> nn.Module:
    """Undo :func:`add_adversarial_bn`, in place: the twins go, the clean layers stay as trained.

    Returns:
        ``model``, with exactly the keys it had before.
    """
    for norm in _duals(model):
        del norm.adversarial, norm.on_adversarial_path
        norm.__class__ = _plain_class(norm)
    return model


def adversarial_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Of the twins that :func:`add_adversarial_bn` made."""
    return [parameter for norm in _duals(model) for parameter in norm.adversarial.parameters()]


@contextmanager
def adversarial_path(model: nn.Module) -> Iterator[None]:
    """Within this context, ``model`` normalises with the adversarial batch norms.

    Raises:
        ValueError: the model has batch norms without adversarial twins.
    """
    require_dual(model)
    norms = _duals(model)
    before = [norm.on_adversarial_path for norm in norms]
    for norm in norms:
        norm.on_adversarial_path = True
    try:
        yield
    finally:
        for norm, path in zip(norms, before, strict=True):
            norm.on_adversarial_path = path


def require_dual(model: nn.Module) -> None:
    """Raise ValueError unless every batch norm of ``model`` has its adversarial twin."""
    twins = {id(norm.adversarial) for norm in _duals(model)}
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, _Dual) and id(module) not in twins:
            raise ValueError(
                f"batch norm {name!r} has no adversarial twin: call taf_fast.add_adversarial_bn(model) first"
            )
