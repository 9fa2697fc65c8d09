"""Helpers of every launcher: whether Triton runs, on which device, in which precision."""

import contextlib

import torch
import triton
from torch import Tensor

INTERPRETED = triton.knobs.runtime.interpret


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that sums are accumulated in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def runs_on_triton(x: Tensor) -> bool:
    """Whether the kernels handle ``x``. They compute in fp32, so float64 always takes the PyTorch path."""
    return (x.is_cuda or INTERPRETED) and x.dtype != torch.float64


def wrap_triton(kernel):
    """Make a kernel's launch visible to torch.compile. Interpreted kernels, which torch rejects, stay
    bare."""
    return kernel if INTERPRETED else torch.library.wrap_triton(kernel)


def on_device_of(x: Tensor):
    """Return a context that makes ``x``'s device current: Triton launches on the current device."""
    return torch.cuda.device_of(x) if torch.cuda.is_initialized() else contextlib.nullcontext()


def in_cache(x: Tensor) -> bool:
    """Whether a plain-PyTorch path works in matrix products and clip by clip: on a CPU, where that saves
    temporary tensors as large as ``x``. On a GPU a matrix product may run in TF32, and a compiled graph fuses
    products and sums."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()
