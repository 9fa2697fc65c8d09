"""From a planned clip to the frames a loader delivers, on one thread of the CPU."""

import torch
import torch.nn.functional as F

from taf_fast.data.scanning.manifest import Clip
from taf_fast.data.views.colour import apply_colours
from taf_fast.data.views.planner import ClipPlan

from .decode import decode_crops


def render(clip: Clip, plan: ClipPlan, out: torch.Tensor) -> None:
    """Decodes, crops, resizes (bilinear, anti-aliased: as PIL but for rounding), mirrors and colours.

    ``out`` is uint8 ``[T, size, size, 3]`` (RGB), contiguous. DataError when the clip cannot be decoded.
    """
    crops = torch.from_numpy(decode_crops(clip, plan)).permute(0, 3, 1, 2)
    frames = F.interpolate(crops, tuple(out.shape[1:3]), mode="bilinear", antialias=True)
    frames, delivered = frames.permute(0, 2, 3, 1).numpy(), out.numpy()
    # Copied by NumPy: PyTorch would start threads for it, which get in the way of those of the training step.
    if plan.mirror:
        delivered.view("V3")[:] = frames.view("V3")[:, :, ::-1]  # whole pixels: twice as fast
    else:
        delivered[:] = frames
    if plan.colours is not None:
        apply_colours(delivered, plan.colours)
