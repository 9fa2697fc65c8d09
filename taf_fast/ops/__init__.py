"""The operators of TAF: Triton kernels on CUDA, plain PyTorch elsewhere, the same numbers on both.

All operators accept any memory layout in float64, float32, bfloat16 or float16. Sums are kept in float32;
float64 stays float64 and takes the plain PyTorch path on CUDA. The operators leave their inputs unchanged and
work under torch.compile(fullgraph=True).
"""

from taf_fast.ops.cam_gradient import cam_gradient
from taf_fast.ops.cam_loss import cam_loss
from taf_fast.ops.frame_cam import frame_cam
from taf_fast.ops.pgd_step import pgd_step
from taf_fast.ops.temporal_shift import temporal_shift

__all__ = ["cam_gradient", "cam_loss", "frame_cam", "pgd_step", "temporal_shift"]
