"""The number format that a step computes in."""

import torch

PRECISIONS = ("float32", "bfloat16")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context for a step: "bfloat16" by autocast (parameters, their gradients, batch statistics and
    losses stay in float32), or "float32"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
