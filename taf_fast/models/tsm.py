"""Temporal Shift Module (Lin et al., ICCV 2019): a shift before every block's first convolution."""

from torch import Tensor, nn

from taf_fast import ops
from taf_fast.models.classifier import FrameClassifier
from taf_fast.models.resnet import ResNet


class TemporalShift(nn.Module):
    """Maps [B*T,C,h,w] to the same shape; one eighth of the channels comes from the next frame and one eighth
    from the previous frame."""

    def __init__(self, num_segments: int):
        super().__init__()
        self.num_segments = num_segments

    def forward(self, x: Tensor) -> Tensor:
        return ops.temporal_shift(x, self.num_segments)


def shifted_resnet(depth: int, num_segments: int) -> ResNet:
    """Build a ResNet of depth 18 or 50 with a temporal shift in every block."""
    return ResNet(depth, temporal=lambda channels, stage: TemporalShift(num_segments))


class TSM(FrameClassifier):
    family = "tsm"

    @property
    def options(self) -> dict:
        return {"mixed_shortcut": self.backbone.mixed_shortcut}


def tsm(
    depth: int, num_classes: int, num_segments: int, dropout: float = 0.5, mixed_shortcut: bool = False
) -> TSM:
    """Build TSM on a ResNet of depth 18 or 50 (the TAF paper's baseline has depth 50 and dropout 0.5).

    With ``mixed_shortcut`` the shortcut convolutions see shifted frames, as in the TPN project's own TSM.
    """
    trunk = shifted_resnet(depth, num_segments)
    trunk.mixed_shortcut = mixed_shortcut
    return TSM(trunk, num_classes, num_segments, dropout)
