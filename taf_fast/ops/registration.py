"""Registration of ops that launch Triton kernels on CUDA and run plain PyTorch elsewhere."""

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import cast

import torch
from triton.runtime.jit import JITFunction


def triton_op(name: str, kernels: ModuleType) -> Callable[[Callable], torch.library.CustomOpDef]:
    """Register the decorated function as the op ``taf_fast::name``, which changes none of its arguments.

    Does what ``torch.library.triton_op`` does, but finds the kernels in the module ``kernels``. PyTorch
    searches the function's source for them, and imports all of ``torch.compile`` to do so, which takes longer
    than importing PyTorch. It needs the kernels for the key of its cache of compiled graphs: a graph that
    holds an older version of a kernel must not be used again.
    """

    def register(function: Callable) -> torch.library.CustomOpDef:
        # A partial has no source to search. PyTorch reads the annotations with the function's globals.
        without_source = partial(function)
        vars(without_source)["__globals__"] = function.__globals__
        op = torch.library.triton_op(f"taf_fast::{name}", without_source, mutates_args=())
        found = [value for value in vars(kernels).values() if isinstance(value, JITFunction)]
        torch._library.triton.triton_ops_to_kernels[f"taf_fast::{name}"] = found
        return cast(torch.library.CustomOpDef, op)

    return register
