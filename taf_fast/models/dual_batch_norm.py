"""Two sets of batch-norm layers over one set of weights (Xie et al., 2020; the TAF paper's dual BN).

Every batch norm keeps its own parameters, statistics and keys and gets a twin, ``adversarial``,
that normalises clips from the other distribution. The path is chosen explicitly, never from a
clip's position in the batch. The modules stay where they are and keep their class as a base, so
optimisers, hooks, aliases and ``isinstance`` checks keep working; only the twins come and go.
"""

import copy
import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.lazy import LazyModuleMixin

from taf_fast.models.modules import classes_of, modules_of
from taf_fast.models.recomputation import recomputed_within


class _Dual(nn.Module):
    """Mixed in front of a batch norm's own class by :func:`add_adversarial_bn`."""

    adversarial: nn.Module
    on_adversarial_path: bool
    by_running_statistics = False  # the twin's last forward, for want of a batch

    def forward(self, x: Tensor) -> Tensor:
        if not self.on_adversarial_path:
            return super().forward(x)
        twin = self.adversarial
        # One value per channel has no variance. It comes from a single attacked clip, which no trainer can
        # rule out, in a norm over vectors of a clip.
        if twin.training and x.numel() == x.shape[1] and twin.running_mean is not None:
            self.by_running_statistics = True
            twin.training = False
            y = twin(x)
            twin.training = True
            return y
        return twin(x)

    def __getattr__(self, name: str) -> Any:
        # A module may read what a batch norm has instead of calling it, as one does that torch.ao fused of a
        # convolution and a batch norm.
        own = vars(self)
        if own.get("on_adversarial_path") and (name in own["_parameters"] or name in own["_buffers"]):
            return getattr(own["_modules"]["adversarial"], name)
        return super().__getattr__(name)

    def reset_running_stats(self) -> None:
        raise RuntimeError(
            "the running statistics of a batch norm with an adversarial twin cannot be reset: "
            "torch.optim.swa_utils.update_bn would reset the twins' too and leave them so. "
            "Use it on taf_fast.strip_adversarial_bn(copy.deepcopy(model))"
        )

    def __reduce_ex__(self, protocol):
        # Pickle cannot find a class that is made at run time.
        _, _, *state = super().__reduce_ex__(protocol)
        return _unfilled, (plain_class(self),), *state


@functools.cache
def _dual_class(plain: type) -> type:
    return type(f"Dual{plain.__name__}", (_Dual, plain), {})


def plain_class(module: Any) -> type[Any]:
    """The class of a module, that before :func:`add_adversarial_bn` for a batch norm with a twin."""
    return type(module).__mro__[2] if isinstance(module, _Dual) else type(module)


def _unfilled(plain: type) -> _Dual:
    dual = _dual_class(plain)
    return dual.__new__(dual)


def _outermost_norms(model: nn.Module) -> list[tuple[str, _BatchNorm]]:
    """The batch norms that are no part of another one, as twins and the parts of a split batch norm are."""
    norms: list[tuple[str, _BatchNorm]] = []
    for name, module in model.named_modules():  # a module comes before its parts
        inner = norms and name.startswith(f"{norms[-1][0]}.".removeprefix("."))
        if isinstance(module, _BatchNorm) and not inner:
            norms.append((name, module))
    return norms


def named_duals(model: nn.Module) -> list[tuple[str, Any]]:
    """The batch norms that have a twin, ``adversarial``, with their names."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, _Dual)]


def _duals(model: nn.Module) -> list[_Dual]:
    return [module for module in modules_of(model) if isinstance(module, _Dual)]


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
        ValueError: the model has adversarial batch norms already, or one that is not yet initialised.
    """
    _refuse_converted(model)
    if _duals(model):
        raise ValueError("the model has adversarial batch norms already: call add_adversarial_bn once")
    norms = _outermost_norms(model)
    for name, norm in norms:
        if isinstance(norm, LazyModuleMixin):
            raise ValueError(
                f"batch norm {name!r} ({type(norm).__name__}) has no channels before its first forward: "
                "run one, then call taf_fast.add_adversarial_bn"
            )
    for _, norm in norms:
        norm.adversarial = _twin_of(norm)
        norm.on_adversarial_path = False
        norm.__class__ = _dual_class(type(norm))
    return model


def _twin_of(norm: _BatchNorm) -> _BatchNorm:
    twin = copy.deepcopy(norm)
    # Those of the norm itself surround both paths. The hooks of the state dict know the twin's keys.
    for name, hooks in vars(twin).items():
        if "_hooks" in name and "state_dict" not in name:
            hooks.clear()
    return twin


def strip_adversarial_bn(model: nn.Module) -> nn.Module:
    """Undo :func:`add_adversarial_bn`, in place: the twins go, the clean layers stay as trained.

    Returns:
        ``model``, with exactly the keys it had before.
    """
    for norm in _duals(model):
        del norm.adversarial, norm.on_adversarial_path
        vars(norm).pop("by_running_statistics", None)
        norm.__class__ = plain_class(norm)
    return model


def adversarial_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of the twins that :func:`add_adversarial_bn` made."""
    return [parameter for norm in _duals(model) for parameter in norm.adversarial.parameters()]


@contextmanager
def adversarial_path(model: nn.Module) -> Iterator[None]:
    """Within this context, ``model`` normalises with the adversarial batch norms; so does what activation
    checkpointing recomputes of it later.

    Raises:
        ValueError: the model has batch norms without adversarial twins.
    """
    require_dual(model)
    with _path(_duals(model), True):
        yield


def clean_path(model: nn.Module) -> AbstractContextManager[None]:
    """The same for the clean batch norms, which are in use anyway: for what is recomputed within an
    :func:`adversarial_path`."""
    return _path(_duals(model), False)


@contextmanager
def _path(norms: list[_Dual], adversarial: bool) -> Iterator[None]:
    others = [norm for norm in norms if norm.on_adversarial_path != adversarial]
    for norm in others:
        norm.on_adversarial_path = adversarial
    try:
        with recomputed_within(lambda: lambda: _path(norms, adversarial)):
            yield
    finally:
        for norm in others:
            norm.on_adversarial_path = not adversarial


@contextmanager
def count_by_running_statistics(model: nn.Module) -> Iterator[list[int]]:
    """Append, at the end, how many adversarial batch norms had one value per channel in this context, and
    normalised with their running statistics, which they left as they were."""
    count: list[int] = []
    norms = _duals(model)
    for norm in norms:
        if norm.by_running_statistics:
            norm.by_running_statistics = False
    yield count
    count.append(sum(norm.by_running_statistics for norm in norms))


#: The classes of the modules of models that were found to be in order.
_IN_ORDER: WeakKeyDictionary[nn.Module, tuple[type, ...]] = WeakKeyDictionary()


def require_dual(model: nn.Module) -> None:
    """Raise ValueError unless every batch norm of ``model`` has its adversarial twin."""
    classes = classes_of(model)
    if _IN_ORDER.get(model) == classes:
        return
    _refuse_converted(model)
    for name, norm in _outermost_norms(model):
        if not isinstance(norm, _Dual):
            raise ValueError(
                f"batch norm {name!r} has no adversarial twin: call taf_fast.add_adversarial_bn(model) first"
            )
    for name, module in model.named_modules():
        if not isinstance(module, _NormBase) and {"running_mean", "running_var"} <= {*module._buffers.keys()}:
            raise ValueError(
                f"{name!r} ({type(module).__name__}) has running statistics but is no batch norm of torch's: "
                "it cannot have an adversarial twin. Replace it by a torch.nn.BatchNorm"
            )
    _IN_ORDER[model] = classes


def _refuse_converted(model: nn.Module) -> None:
    for name, module in model.named_modules():
        plain = isinstance(module, _BatchNorm) and not isinstance(module, _Dual)
        if plain and "adversarial" in module._modules:
            raise ValueError(
                f"batch norm {name!r} became a {type(module).__name__} after add_adversarial_bn and has lost "
                "its path to the twin: convert the model first, then call taf_fast.add_adversarial_bn"
            )
