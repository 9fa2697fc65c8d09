"""Weights to share and states to resume from: safetensors files, written whole or not at all."""

import dataclasses
import json
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from taf_fast.files import write_atomically
from taf_fast.models import CheckpointError

_KEY = "taf_fast"


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What a file of weights says of itself: enough to rebuild and to apply the model."""

    model: str
    classes: tuple[str, ...]
    num_segments: int
    size: int
    options: dict = dataclasses.field(default_factory=dict)


def save_weights(path: Path, model: nn.Module, info: ModelInfo) -> None:
    """Write the state dict of ``model``, and ``info`` beside it in the file's header."""
    header = json.dumps(dataclasses.asdict(info))
    _write(path, model.state_dict(), header)


def read_info(path: Path) -> ModelInfo | None:
    """What a file of weights says of its model, from its header alone; None for files not written here.

    Raises:
        CheckpointError: no such file, or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    if path.suffix != ".safetensors":
        return None
    with _opened(path) as file:
        header = (file.metadata() or {}).get(_KEY)
    if header is None:
        return None
    values = json.loads(header)
    return ModelInfo(**values | {"classes": tuple(values["classes"])})


def require_classes(path: Path, info: ModelInfo, classes: tuple[str, ...]) -> None:
    """Raise CheckpointError unless the checkpoint's class names are ``classes``, in that order."""
    if len(info.classes) != len(classes):
        raise CheckpointError(
            f"checkpoint {path} has {len(info.classes)} classes, the data set has {len(classes)}"
        )
    for index, (found, expected) in enumerate(zip(info.classes, classes, strict=True)):
        if found != expected:
            raise CheckpointError(
                f"checkpoint {path} has class {index} {found!r} where the data set has {expected!r}"
            )


def save_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    generators: dict[str, Tensor],
    position: dict,
) -> None:
    """Write all a run needs to go on as if it had never stopped.

    Args:
        model: adversarial batch norms included.
        optimizer: its per-parameter tensors (the momentum) are kept by the parameters' names.
        generators: name -> what ``get_state`` of a ``torch.Generator`` gave.
        position: whatever else, JSON-able: step, data position, quarantine.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{key}.{name}"] = value
    for name, state in generators.items():
        tensors[f"generator.{name}"] = state
    _write(path, tensors, json.dumps(position))


def load_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict, dict[str, Tensor]]:
    """Put a state of :func:`save_state` back in place; returns its position and generators.

    Raises:
        CheckpointError: damaged file, or one of another model.
    """
    tensors, header = _read(path)
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "generator": {}}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        groups[kind][rest] = tensor
    try:
        model.load_state_dict(groups["model"])
    except RuntimeError as error:
        raise CheckpointError(f"{path} is the state of another model: {error}") from None
    parameters = dict(model.named_parameters())
    for name, tensor in groups["optimizer"].items():
        key, _, rest = name.partition(".")
        parameter = parameters[rest]
        # Optimisers are fast, and fused ones right, where all they update together lies in memory alike.
        optimizer.state[parameter][key] = torch.empty_like(parameter).copy_(tensor)
    return json.loads(header), groups["generator"]


def _write(path: Path, tensors: dict[str, Tensor], header: str) -> None:
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda temporary: save_file(whole, temporary, metadata={_KEY: header}))


def _read(path: Path) -> tuple[dict[str, Tensor], str | None]:
    with _opened(path) as file:
        names, metadata = file.keys(), file.metadata() or {}
        return {name: file.get_tensor(name) for name in names}, metadata.get(_KEY)


@contextmanager
def _opened(path: Path):
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file: {error}") from None
