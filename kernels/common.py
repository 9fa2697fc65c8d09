"""What every launcher needs to know: whether Triton runs, on which device, in which precision."""

import contextlib

import torch
import triton
from torch import Tensor

INTERPRETED = triton.knobs.runtime.interpret


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The precision sums are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def runs_on_triton(x: Tensor) -> bool:
    """The kernels compute in fp32, so float64 takes the reference path on every device."""
    return (x.is_cuda or INTERPRETED) and x.dtype != torch.float64


def wrap_triton(kernel):
    """torch's wrap_triton, which makes a launch visible to torch.compile but rejects interpreted kernels.

    Keeps torch's name: triton_op looks for calls of that name to find the kernels behind an op, and
    their source is part of the compile cache's key.
    """
    return kernel if INTERPRETED else torch.library.wrap_triton(kernel)


def on_device_of(x: Tensor):
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device_of(x) if torch.cuda.is_initialized() else contextlib.nullcontext()
