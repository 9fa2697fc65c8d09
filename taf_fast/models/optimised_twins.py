"""Adversarial batch norms that an optimiser does not know."""

import functools
import gc
from collections.abc import Iterable
from weakref import WeakSet

from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from taf_fast.models.dual_batch_norm import named_duals

_models: WeakSet[nn.Module] = WeakSet()
_seen: WeakSet[Optimizer] = WeakSet()


def require_optimised_twins(model: nn.Module) -> None:
    """From now on, the first step of an optimiser that trains a batch norm of ``model`` raises ValueError if
    no optimiser trains its adversarial twin: it was built before :func:`taf_fast.add_adversarial_bn`, and the
    twin
    would stay a copy of the norm that it was."""
    _models.add(model)
    _watch_optimisers()


@functools.cache
def _watch_optimisers() -> None:
    register_optimizer_step_pre_hook(_require_twins)


def _require_twins(optimiser: Optimizer, _args: object, _kwargs: object) -> None:
    if optimiser in _seen:
        return
    held = _held_by([optimiser])
    for model in _models:
        for name, norm in named_duals(model):
            for kind, parameter in norm.named_parameters(recurse=False):
                twin = norm.adversarial.get_parameter(kind)
                forgotten = id(parameter) in held and id(twin) not in held and twin.requires_grad
                if forgotten and id(twin) not in _held_by(_all_optimisers()):
                    raise ValueError(
                        f"no optimiser has {name}.adversarial.{kind}, and {type(optimiser).__name__} has "
                        f"{name}.{kind}: build the optimiser after taf_fast.add_adversarial_bn"
                    )
    _seen.add(optimiser)


def _held_by(optimisers: Iterable[Optimizer]) -> set[int]:
    return {id(p) for optimiser in optimisers for group in optimiser.param_groups for p in group["params"]}


def _all_optimisers() -> Iterable[Optimizer]:
    return (thing for thing in gc.get_objects() if issubclass(type(thing), Optimizer))
