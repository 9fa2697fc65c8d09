"""Argument checks that the ops share. None reads the values of a tensor on a GPU, because that would wait for
the GPU."""

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_tensor(name: str, value: object) -> None:
    """Raise ValueError unless ``value`` is a tensor."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a torch.Tensor, got {type(value).__name__}")


def check_floating(name: str, tensor: Tensor) -> None:
    """Raise ValueError unless ``tensor`` is a tensor with one of :data:`DTYPES`."""
    check_tensor(name, tensor)
    if tensor.dtype not in DTYPES:
        raise ValueError(f"{name} must be float64, float32, bfloat16 or float16, got {tensor.dtype}")


def check_classes(name: str, labels: Tensor, classes: int) -> None:
    """Raise ValueError unless the values of ``labels`` [B] are from 0 to ``classes`` - 1. Passes what only a
    wait or a break of a captured graph would tell."""
    if labels.device.type == "cpu" and type(labels) is Tensor and not torch.compiler.is_compiling():
        require_classes(name, labels, classes)


def require_classes(name: str, labels: Tensor, classes: int) -> None:
    """Raise ValueError, naming the values, unless those of ``labels`` [B] are from 0 to ``classes`` - 1."""
    wrong = ((labels < 0) | (labels >= classes)).nonzero().flatten().tolist()
    if wrong:
        values = ", ".join(map(str, labels[wrong[:10]].tolist()))
        places = ", ".join(map(str, wrong[:10]))
        more = f" and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise ValueError(
            f"{name} must be from 0 to {classes - 1}, got {values} at {places} of the batch{more}"
        )


def check_like(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raise ValueError unless both are tensors of the same shape, dtype and device."""
    check_tensor(name, tensor)
    if tensor.shape != other.shape:
        raise ValueError(
            f"{name} must have the shape of {other_name}, {list(other.shape)}, got {list(tensor.shape)}"
        )
    if tensor.dtype != other.dtype:
        raise ValueError(f"{name} must have the dtype of {other_name}, {other.dtype}, got {tensor.dtype}")
    check_device(name, tensor, other_name, other)


def check_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raise ValueError unless both tensors are on the same device."""
    if tensor.device != other.device:
        raise ValueError(f"{name} must be on the device of {other_name}, {other.device}, got {tensor.device}")
