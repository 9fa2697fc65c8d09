"""State dicts out of files of safetensors and of ``torch.save``, on the CPU."""

import pickle
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


class CheckpointError(ValueError):
    """A file of weights cannot be read or does not fit; the message names the file and what was expected."""


def read_state_dict(path: Path, trust: bool = False) -> dict[str, Tensor]:
    """The names and tensors in a file.

    Args:
        path: a safetensors file, or one of ``torch.save``: a state dict, or a dict that has one under
            ``state_dict``.
        trust: run whatever code a ``torch.save`` file's pickle holds. Objects whose classes are not
            installed are then passed over. Without it only tensors and plain containers are read.

    Raises:
        CheckpointError: no such file, damaged, or it cannot be read without running its code.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is truncated or no safetensors file: {error}") from None
    try:
        # The legacy format's reader takes its options from the pickle module too.
        options = {"weights_only": False, "pickle_module": _tolerant} if trust else {"weights_only": True}
        content = torch.load(path, map_location="cpu", **options)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"checkpoint {path} cannot be read: {reason}. If it is whole and needs code to be run on "
            "loading, and you trust where it comes from, pass --trust-checkpoint"
        ) from None
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"checkpoint {path} holds no state dict, expected names and tensors")
    return dict(content)


class _Absent:
    """Stands for an object of a class that is not installed."""

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
