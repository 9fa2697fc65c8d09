"""Grouped Spatial-Temporal aggregation (Luo and Yuille, ICCV 2019).

Some channels of each block's 3x3 convolution become temporal.
"""

import torch
from torch import Tensor, nn

from taf_fast.models.classifier import FrameClassifier
from taf_fast.models.resnet import ResNet, conv


class SpatialTemporalConv(nn.Module):
    """Maps [B*T,C,h,w] to [B*T,C,h/stride,w/stride].

    A 3x3 convolution per frame computes the first 1 - 1/alpha of the channels, a 3x3x3 convolution over the
    clip the last 1/alpha.

    Args:
        channels: C, a multiple of alpha and of beta.
        stride: spatial stride.
        num_segments: T.
        alpha: one in alpha output channels is temporal.
        beta: with 2, the spatial part reads the first half of the input channels and the temporal part the
            second half; with 1, both read all channels.
    """

    def __init__(self, channels: int, stride: int, num_segments: int, alpha: int, beta: int):
        super().__init__()
        self.num_segments = num_segments
        read, temporal = channels // beta, channels // alpha
        self.spatial = conv(read, channels - temporal, 3, stride)
        self.temporal = nn.Conv3d(read, temporal, 3, (1, stride, stride), padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        read = self.spatial.in_channels
        clips = torch.unflatten(x[:, -read:], 0, (-1, self.num_segments)).transpose(1, 2)
        temporal = self.temporal(clips).transpose(1, 2).flatten(0, 1)
        return torch.cat([self.spatial(x[:, :read]), temporal], 1)


class GST(FrameClassifier):
    family = "gst"


def gst(depth: int, num_classes: int, num_segments: int, alpha: int, beta: int, dropout: float = 0.3) -> GST:
    """Build GST on a ResNet of depth 18 or 50.

    The TAF paper's baselines have depth 50, dropout 0.3, alpha 4, and beta 2 (GST) or 1 (GST-Large). The
    official code uses 3D convolutions of temporal extent 1 throughout. Here all but the temporal part are 2D,
    with the frames in the batch, which gives the same results.
    """
    trunk = ResNet(
        depth,
        conv2=lambda channels, stride: SpatialTemporalConv(channels, stride, num_segments, alpha, beta),
    )
    return GST(trunk, num_classes, num_segments, dropout)
