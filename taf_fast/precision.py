"""The number format that a step computes in, and the algorithms of a GPU."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

PRECISIONS = ("float32", "bfloat16")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context for a step: "bfloat16" by autocast (parameters, their gradients, batch statistics and
    losses stay in float32), or "float32"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def best_precision(device: torch.device) -> str:
    """bfloat16 on a GPU that computes in it, else float32."""
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported(False) else "float32"


@contextmanager
def algorithms(device: torch.device, deterministic: bool) -> Iterator[None]:
    """Within this context, a GPU's convolutions and matrix products of float32 run on its tensor cores (TF32:
    a mantissa of 10 bits), and cuDNN takes the algorithm that is fastest for a shape, which it finds out when
    a shape comes for the first time. If ``deterministic``, a computation gives the same bits each time:
    PyTorch takes algorithms that do, or raises an error.
    """
    memory: Any = torch.utils.deterministic
    before = (
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        memory.fill_uninitialized_memory,
    )
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True)
        # What is never read needs no values.
        memory.fill_uninitialized_memory = False
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        with torch.backends.cudnn.flags(
            enabled=torch.backends.cudnn.enabled,
            benchmark=not deterministic,
            deterministic=deterministic,
            allow_tf32=True,
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.use_deterministic_algorithms(before[1], warn_only=before[2])
        memory.fill_uninitialized_memory = before[3]
