"""channels_last, the memory format in which convolutions are fastest."""

import torch
from torch import nn

_FORMATS = {nn.Conv2d: torch.channels_last, nn.Conv3d: torch.channels_last_3d}


def channels_last(model: nn.Module) -> nn.Module:
    """Convert the weights of all 2D and 3D convolutions to channels_last, in place.

    ``model.to(memory_format=torch.channels_last)`` does the same but refuses models with both 2D and 3D
    convolutions, such as GST and TPN. Values and keys do not change; results differ by rounding. The clips
    should have the same memory format, as uint8 frames [B,T,H,W,3] do. Call this function before an
    optimiser's first step, because the momentum keeps the memory format that the weights have then.

    Returns:
        ``model``.
    """
    for module in model.modules():
        for kind, memory_format in _FORMATS.items():
            if isinstance(module, kind):
                module.weight.data = module.weight.data.contiguous(memory_format=memory_format)
    return model
