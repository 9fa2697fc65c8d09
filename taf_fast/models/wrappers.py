"""Wrappers of modules for several devices."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from taf_fast.models.modules import base_of, classes_of

_WRAPPERS = ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "FSDPModule")


def refuse_wrapped(model: nn.Module) -> None:
    """The step calls a model twice before one backward, the second time only where clips are attacked."""
    if not any(base_of(kind, *_WRAPPERS) for kind in set(classes_of(model))):
        return
    for name, module in model.named_modules():
        kind = base_of(type(module), *_WRAPPERS)
        if kind == "FSDPModule":
            part = f"part {name!r} of the model" if name else "the model"
            raise ValueError(
                f"{part} is sharded, and a rank without attacked clips would leave the others waiting: "
                "shard the step as a whole, fully_shard(TAFStep(model, ...))"
            )
        if kind is not None:
            raise ValueError(
                f"the model is wrapped in {kind}, expected the plain one: wrap the step, "
                f"{kind}(TAFStep(model, ...))"
            )


def is_sharded(module: nn.Module) -> bool:
    """Whether the module is one that ``fully_shard`` was called with."""
    return base_of(type(module), "FSDPModule") is not None


def refuse_static_graph() -> None:
    """Raise ValueError in the forward of a DistributedDataParallel that would count the gradients of a
    backward within that forward, in its first step alone."""
    outer = DistributedDataParallel._active_ddp_module
    if outer is not None and outer.static_graph:
        raise ValueError(
            "DistributedDataParallel(static_graph=True) counts the gradients of one backward: "
            "call the step without backward=..., or wrap it without static_graph"
        )
