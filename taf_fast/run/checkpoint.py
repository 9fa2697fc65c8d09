"""Weights to share and states to resume from, as safetensors files that are whole or absent."""

import dataclasses
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from taf_fast import models
from taf_fast.errors import CheckpointError, ClassesError
from taf_fast.files import write_atomically
from taf_fast.models.pickles import is_safetensors
from taf_fast.parsing import parse_json, to_json
from taf_fast.process import ranks
from taf_fast.run.config import FIELDS, hint_of
from taf_fast.run.values import check, declaration

_KEY = "taf_fast"

#: The final weights in the folder of a run.
WEIGHTS = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """The header of a file of weights: enough to rebuild and apply the model.

    ``model`` is one of :data:`taf_fast.models.NAMES`, ``classes`` are their names by label, clips have
    ``num_segments`` frames of ``size`` x ``size`` pixels, and ``options`` go to
    :func:`taf_fast.models.build`.
    """

    model: str
    classes: tuple[str, ...]
    num_segments: int
    size: int
    options: dict = dataclasses.field(default_factory=dict)


def weights_file(path: Path) -> Path:
    """``path`` itself, or the final weights in it if it is the folder of a run.

    Raises:
        CheckpointError: a folder without final weights; the message names what is in it.
    """
    if not path.is_dir():
        return path
    if (path / WEIGHTS).is_file():
        return path / WEIGHTS
    names = sorted(entry.name for entry in path.iterdir())
    found = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    raise CheckpointError(
        f"checkpoint {path} is a folder without {WEIGHTS}, expected a file or the folder of a finished run; "
        f"it holds {found or 'nothing'}"
    )


def save_weights(path: Path, model: nn.Module, info: ModelInfo) -> None:
    """Write the state dict of ``model``, with ``info`` and a checksum in the file's header."""
    _write(path, model.state_dict(), to_json(dataclasses.asdict(info)))


def read_info(path: Path) -> ModelInfo | None:
    """Read the header of a file of weights; None for files that this project did not write.

    Raises:
        CheckpointError: the file does not exist or is damaged.
    """
    if not is_safetensors(path):
        return None
    with _opened(path) as file:
        metadata = file.metadata() or {}
    entry = metadata.get(_KEY)
    if entry is None:
        # A damaged byte must not make a file of ours one without a checksum.
        if ours := [name for name, text in metadata.items() if _parts(text)[0]]:
            raise CheckpointError(f"{path} is damaged: its header has {ours[0]!r} in place of {_KEY!r}")
        return None
    try:
        values = parse_json(_parts(entry)[1])
        info = ModelInfo(**values | {"classes": tuple(values["classes"])})
        for name in ("model", "num_segments", "size"):
            check(name, getattr(info, name), hint_of(name), declaration(FIELDS[name]))
        if not info.classes or not all(isinstance(name, str) for name in info.classes):
            raise ValueError("classes must be names")
        known = dict.fromkeys(models.switches(info.model), bool)
        if other := {name: on for name, on in info.options.items() if known.get(name) is not type(on)}:
            raise ValueError(f"{info.model} has no options {other}")
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise CheckpointError(f"{path} has a damaged header: {error}") from None
    return info


def require_whole(path: Path) -> None:
    """Raise CheckpointError if the content of a file of :func:`save_weights` is not what was written.

    Files that earlier versions wrote have no checksum, and pass.
    """
    with _opened(path) as file:
        checksum, header = _parts((file.metadata() or {}).get(_KEY, ""))
        names = file.keys()
        tensors = {name: file.get_tensor(name) for name in names} if checksum else {}
    if checksum and checksum != _checksum(tensors, header):
        raise CheckpointError(f"{path} is damaged: its checksum is not that of its content")


def require_classes(path: Path, info: ModelInfo, classes: tuple[str, ...]) -> None:
    """Raise ClassesError unless the checkpoint's class names are ``classes``, in that order."""
    if len(info.classes) != len(classes):
        raise ClassesError(
            f"checkpoint {path} has {len(info.classes)} classes, the data set has {len(classes)}"
        )
    for index, (found, expected) in enumerate(zip(info.classes, classes, strict=True)):
        if found != expected:
            raise ClassesError(
                f"checkpoint {path} has class {index} {found!r} where the data set has {expected!r}"
            )


def first_not_finite(model: nn.Module) -> str | None:
    """The name of the first parameter or buffer with a NaN or an infinity, such as a running variance."""
    tensors = model.state_dict().items()
    return next((name for name, tensor in tensors if not tensor.isfinite().all()), None)


def save_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    generators: dict[str, Tensor],
    position: dict,
    average: nn.Module | None = None,
) -> None:
    """Write everything a run needs to go on as if it had never stopped.

    Args:
        model: with its adversarial batch norms.
        optimizer: its tensors of each parameter, such as the momentum, are kept under the parameter's name.
        generators: name -> ``get_state()`` of a ``torch.Generator``.
        position: everything else as JSON values: step, position in the data, quarantine.
        average: the moving average of ``model``, if there is one.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{key}.{name}"] = value
    for name, state in generators.items():
        tensors[f"generator.{name}"] = state
    _write(path, tensors, to_json(position))


def load_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None = None
) -> tuple[dict, dict[str, Tensor]]:
    """Load a state of :func:`save_state` into ``model``, ``optimizer`` and ``average``. The first rank reads
    the file, for all.

    Returns:
        Its position and the states of its generators.

    Raises:
        CheckpointError: the file is damaged, or the state of another model or optimiser.
    """
    header, tensors = ranks.from_first(lambda: _read_state(path))
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "generator": {}, "average": {}}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        groups[kind][rest] = tensor
    if bool(groups["average"]) != (average is not None):
        has = "has a" if groups["average"] else "has no"
        raise CheckpointError(f"{path} is the state of another run: it {has} moving average of the model")
    try:
        model.load_state_dict(groups["model"])
        if average is not None:
            average.load_state_dict(groups["average"])
    except RuntimeError as error:
        reasons = " ".join(str(error).split())
        raise CheckpointError(f"{path} is the state of another model: {reasons}") from None
    parameters = dict(model.named_parameters())
    for name, tensor in groups["optimizer"].items():
        key, _, rest = name.partition(".")
        count = key == "step"  # AdamW's, a scalar
        if rest not in parameters or not (count or parameters[rest].shape == tensor.shape):
            raise CheckpointError(f"{path} is the state of another optimiser: {rest} does not fit the model")
        parameter = parameters[rest]
        if count:
            # Fused kernels read the count on the parameter's device, all others on the host.
            state = tensor.to(parameter.device) if optimizer.defaults.get("fused") else tensor
        else:
            # Optimisers are faster, and fused ones only right, if a parameter and its momentum share strides.
            state = torch.empty_like(parameter).copy_(tensor)
        optimizer.state[parameter][key] = state
    return parse_json(header), groups["generator"]


def _read_state(path: Path) -> tuple[str, dict[str, Tensor]]:
    with _opened(path) as file:
        names, metadata = file.keys(), file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in names}
    checksum, header = _parts(metadata.get(_KEY, ""))
    if checksum != _checksum(tensors, header):
        raise CheckpointError(
            f"{path} is damaged, or not a state of this program: its checksum is not that of its content"
        )
    return header, tensors


def _checksum(tensors: dict[str, Tensor], header: str) -> str:
    """CRC-32 of the header and of every tensor's name, type, shape and values."""
    crc = zlib.crc32(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.flatten().view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def _parts(entry: str) -> tuple[str, str]:
    """The checksum, if there is one, and the header, which is JSON."""
    checked = re.fullmatch("([0-9a-f]{8}) (.*)", entry, re.DOTALL)
    return (checked[1], checked[2]) if checked else ("", entry)


def _write(path: Path, tensors: dict[str, Tensor], header: str) -> None:
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    # In one entry: safetensors writes several in any order, and equal states are equal files.
    entry = f"{_checksum(whole, header)} {header}"

    def write(temporary: Path) -> None:
        try:
            save_file(whole, temporary, metadata={_KEY: entry})
        except SafetensorError as error:  # such as a full disk
            raise OSError(str(error)) from None

    write_atomically(path, write)


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or not a safetensors file: {error}") from None
