"""Read state dicts from safetensors and ``torch.save`` files onto the CPU."""

import pickle
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from taf_fast.errors import CheckpointError

# The begins of zip files and of pickles.
_OF_TORCH = (b"PK", *(bytes([0x80, protocol]) for protocol in range(2, 6)))
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_DTYPES = (*_FLOATS, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def is_safetensors(path: Path) -> bool:
    """Whether a file is safetensors, a length and a JSON object, by its first bytes; else it is torch.save's.

    Raises:
        CheckpointError: the file does not exist, cannot be read, or has neither format; or it is safetensors
            at a path that the package of that name cannot open.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    try:
        with path.open("rb") as file:
            begin = file.read(9)
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error.strerror or error}") from None
    if begin[8:] != b"{" and not begin.startswith(_OF_TORCH):
        raise CheckpointError(
            f"checkpoint {path} is neither a torch.save file nor safetensors"
            + (f": it begins with {begin[:2]!r}" if begin else ": it is empty")
        )
    if begin[8:] != b"{":
        return False
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise CheckpointError(
            f"checkpoint {path} cannot be read: a safetensors file needs a path that is UTF-8"
        ) from None
    return True


def read_state_dict(path: Path, trust: bool = False) -> dict[str, Tensor]:
    """Read the tensors in a file by name.

    Args:
        path: a safetensors file, or a ``torch.save`` file that holds a state dict, directly or under the key
            ``state_dict``.
        trust: run any code in the pickle of a ``torch.save`` file, and skip objects whose classes are not
            installed. Otherwise only tensors and plain containers are read.

    Returns:
        Dense tensors on the CPU of integers, bools or floating-point numbers of 16 bits or more.

    Raises:
        CheckpointError: the file is missing, damaged, cannot be read without running its code, or holds a
            tensor of another kind.
    """
    weights = _safetensors(path) if is_safetensors(path) else _pickled(path, trust)
    for name, tensor in weights.items():
        if (kind := _unusual(tensor)) is not None:
            raise CheckpointError(f"checkpoint {path}: {name} is {kind}, expected a dense tensor of numbers")
    return weights


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is truncated or not a safetensors file: {error}") from None


def _pickled(path: Path, trust: bool) -> dict[str, Tensor]:
    try:
        # torch's reader of the legacy format also takes its options from the pickle module.
        options = {"weights_only": False, "pickle_module": _tolerant} if trust else {"weights_only": True}
        with path.open("rb") as file:  # from a path, torch would go by the name
            content = torch.load(file, map_location="cpu", **options)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"checkpoint {path} cannot be read: {reason}. If the file is complete, must run code to "
            "load, and comes from a source that you trust, pass --trust-checkpoint"
        ) from None
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict):
        raise CheckpointError(f"checkpoint {path} holds no state dict, expected names and tensors")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"checkpoint {path} holds no state dict: {name!r} is {type(value).__name__}, "
                "expected names and tensors"
            )
    return dict(content)


def _unusual(tensor: Tensor) -> str | None:
    """What a tensor is that no layer of a model can take over; None if it is not."""
    if tensor.layout != torch.strided:
        return f"sparse ({tensor.layout})"
    if tensor.is_quantized or tensor.is_complex() or tensor.dtype not in _DTYPES:
        return f"of {tensor.dtype}"
    if tensor.device.type != "cpu":
        return f"without values, on device {tensor.device}"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "larger than what the file holds of it"
    return None


def require_finite(path: Path, weights: dict[str, Tensor]) -> None:
    """Raise CheckpointError, naming the first, unless all tensors are finite numbers of a floating-point type
    that stay finite in float32, and running variances at least 0; counts of batches may be integers."""
    for name, tensor in weights.items():
        if name.endswith(".num_batches_tracked"):
            continue
        if tensor.dtype not in _FLOATS:
            raise CheckpointError(
                f"checkpoint {path}: {name} is of {tensor.dtype}, expected floating-point numbers"
            )
        if not tensor.float().isfinite().all():
            raise CheckpointError(f"checkpoint {path}: {name} has a NaN or an infinity, expected numbers")
        if name.endswith(".running_var") and tensor.lt(0).any():
            raise CheckpointError(f"checkpoint {path}: {name} has a variance below 0")


class _Absent:
    """Stands in for an object whose class is not installed."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, item):
        pass

    def extend(self, items):
        pass


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError):
            return _Absent


def _load(file, **options):
    return _Unpickler(file, **options).load()


_tolerant = SimpleNamespace(__name__="taf_fast.models.pickles", Unpickler=_Unpickler, load=_load)
