"""Parts of a model that torch.compile made."""

import sys
from contextlib import AbstractContextManager, nullcontext

import torch


def uncompiled() -> AbstractContextManager:
    """Within this context they run as they are: a compiled part cannot be differentiated twice, and it keeps
    its operations from who looks for them."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and the import takes seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
