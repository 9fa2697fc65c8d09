"""The memory format in which convolutions are fastest."""

import torch
from torch import nn

_FORMATS = {nn.Conv2d: torch.channels_last, nn.Conv3d: torch.channels_last_3d}


def channels_last(model: nn.Module) -> nn.Module:
    """Lay out the weights of every convolution channels-last, in place.

    As ``model.to(memory_format=torch.channels_last)``, which refuses models that have both 2D and 3D
    convolutions, as GST and TPN. Values and keys stay; results differ by rounding. Clips should be laid
    out alike: uint8 frames [B,T,H,W,3] are. Call it before an optimiser's first step: its momentum has
    the layout the weights had then.

    Returns:
        ``model``.
    """
    for module in model.modules():
        for kind, memory_format in _FORMATS.items():
            if isinstance(module, kind):
                module.weight.data = module.weight.data.contiguous(memory_format=memory_format)
    return model
