"""Weights to share and states to resume from: safetensors files, written whole or not at all."""

import dataclasses
import json
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from taf_fast import models
from taf_fast.run.config import RunError
from taf_fast.run.files import write_atomically

_KEY = "taf_fast"


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What a file of weights says of itself: enough to rebuild and to apply the model."""

    model: str
    classes: tuple[str, ...]
    num_segments: int
    size: int

    def build(self, **options) -> nn.Module:
        return models.build(self.model, len(self.classes), self.num_segments, **options)


def save_weights(path: Path, model: nn.Module, info: ModelInfo) -> None:
    """Write the state dict of ``model``, and ``info`` beside it in the file's header."""
    header = json.dumps(dataclasses.asdict(info))
    _write(path, model.state_dict(), header)


def load_weights(path: Path, trust: bool = False) -> tuple[dict[str, Tensor], ModelInfo | None]:
    """Read weights, on the CPU.

    Args:
        path: a safetensors file, or one of ``torch.save`` (a state dict, or a dict with one under
            ``state_dict``), whose prefix ``module.`` is dropped.
        trust: run whatever code a ``torch.save`` file's pickle holds. Without it only tensors and
            plain containers are read.

    Returns:
        The state dict, and what the file says of its model (None for files not written here).

    Raises:
        RunError: no such file, damaged, or it cannot be read without running its code.
    """
    info = read_info(path)
    if path.suffix == ".safetensors":
        return _read(path)[0], info
    try:
        content = torch.load(path, map_location="cpu", weights_only=not trust)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise RunError(
            f"checkpoint {path} cannot be read: {reason}. If it is whole and needs code to be run on "
            "loading, and you trust where it comes from, pass --trust-checkpoint"
        ) from None
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise RunError(f"checkpoint {path} holds no state dict, expected names and tensors")
    return {name.removeprefix("module."): value for name, value in content.items()}, None


def read_info(path: Path) -> ModelInfo | None:
    """What a file of weights says of its model, from its header alone; None for files not written here.

    Raises:
        RunError: no such file, or damaged.
    """
    if not path.is_file():
        raise RunError(f"checkpoint {path} does not exist")
    if path.suffix != ".safetensors":
        return None
    with _opened(path) as file:
        header = (file.metadata() or {}).get(_KEY)
    if header is None:
        return None
    values = json.loads(header)
    return ModelInfo(**values | {"classes": tuple(values["classes"])})


def load_into(model: nn.Module, path: Path, classes: tuple[str, ...], trust: bool = False) -> None:
    """Load the weights of ``path`` into ``model``, all of them or none.

    Raises:
        RunError: as :func:`load_weights`; another number or order of classes; missing, unexpected
            or differently shaped tensors.
    """
    weights, info = load_weights(path, trust)
    if info is not None:
        require_classes(path, info, classes)
    expected = model.state_dict()
    if "fc.weight" in weights and "fc.weight" in expected:
        found = weights["fc.weight"].shape[0]
        if found != len(classes):
            raise RunError(f"checkpoint {path} has {found} classes, the data set has {len(classes)}")
    problems = [f"missing {name}" for name in expected if name not in weights]
    problems += [f"unexpected {name}" for name in weights if name not in expected]
    problems += [
        f"{name} is {list(weights[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if problems:
        shown = "; ".join(problems[:5])
        raise RunError(f"checkpoint {path} does not fit the model ({len(problems)} problems): {shown}")
    model.load_state_dict(weights)


def load_model(path: Path) -> tuple[nn.Module, ModelInfo]:
    """Rebuild the model of a file of :func:`save_weights`, in eval mode, on the CPU.

    Raises:
        RunError: as :func:`load_into`, or the file does not say what its model is.
    """
    _, info = load_weights(path)
    if info is None:
        raise RunError(
            f"checkpoint {path} does not say what its model is, expected a file written by finetune"
        )
    model = info.build()
    load_into(model, path, info.classes)
    return model.eval(), info


def require_classes(path: Path, info: ModelInfo, classes: tuple[str, ...]) -> None:
    """Raise RunError unless the checkpoint's class names are ``classes``, in that order."""
    if len(info.classes) != len(classes):
        raise RunError(f"checkpoint {path} has {len(info.classes)} classes, the data set has {len(classes)}")
    for index, (found, expected) in enumerate(zip(info.classes, classes, strict=True)):
        if found != expected:
            raise RunError(
                f"checkpoint {path} has class {index} {found!r} where the data set has {expected!r}"
            )


def save_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, generators: dict, position: dict
) -> None:
    """Write all a run needs to go on as if it had never stopped.

    Args:
        model: adversarial batch norms included.
        optimizer: its per-parameter tensors (the momentum) are kept by the parameters' names.
        generators: name -> ``torch.Generator``.
        position: whatever else, JSON-able: step, data position, quarantine.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{key}.{name}"] = value
    for name, generator in generators.items():
        tensors[f"generator.{name}"] = generator.get_state()
    _write(path, tensors, json.dumps(position))


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, generators: dict) -> dict:
    """Put a state of :func:`save_state` back in place; returns its position.

    Raises:
        RunError: damaged file, or one of another model.
    """
    tensors, header = _read(path)
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "generator": {}}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        groups[kind][rest] = tensor
    try:
        model.load_state_dict(groups["model"])
    except RuntimeError as error:
        raise RunError(f"{path} is the state of another model: {error}") from None
    parameters = dict(model.named_parameters())
    for name, tensor in groups["optimizer"].items():
        key, _, rest = name.partition(".")
        parameter = parameters[rest]
        optimizer.state[parameter][key] = tensor.to(parameter.device)
    for name, generator in generators.items():
        generator.set_state(groups["generator"][name])
    return json.loads(header)


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
        raise RunError(f"{path} is truncated or no safetensors file: {error}") from None
