"""The operators of TAF: Triton kernels on CUDA, plain PyTorch elsewhere, the same numbers on both.

All take any memory layout and float64, float32, bfloat16 or float16 (sums in float32; float64 stays float64
and takes the plain PyTorch path on CUDA), leave their inputs untouched, and work under
torch.compile(fullgraph=True).
"""

from .cam_gradient import cam_gradient
from .cam_loss import cam_loss
from .frame_cam import frame_cam
from .pgd_step import pgd_step
from .temporal_shift import temporal_shift

__all__ = ["cam_gradient", "cam_loss", "frame_cam", "pgd_step", "temporal_shift"]
