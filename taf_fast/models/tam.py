"""Temporal Aggregation Module (Fan et al., NeurIPS 2019), before every block's first convolution.

This is not MMAction2's TANet, whose Temporal Adaptive Module has the same abbreviation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taf_fast.models.classifier import FrameClassifier
from taf_fast.models.resnet import ResNet


class TemporalAggregation(nn.Module):
    """Maps [B*T,C,h,w] to the same shape: ReLU(previous x[t-1] + current x[t] + next x[t+1]).

    Each of the three has one weight per channel; frames outside the clip are zero.
    """

    def __init__(self, channels: int, num_segments: int):
        super().__init__()
        self.num_segments = num_segments
        # Initialised like a depthwise 1x1 convolution: Kaiming normal with fan-out.
        for name in ("previous", "current", "next"):
            weight = torch.randn(channels, 1, 1) * (2 / channels) ** 0.5
            self.register_parameter(name, nn.Parameter(weight))

    def forward(self, x: Tensor) -> Tensor:
        clips = torch.unflatten(x, 0, (-1, self.num_segments))
        before = F.pad(clips[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0))
        after = F.pad(clips[:, 1:], (0, 0, 0, 0, 0, 0, 0, 1))
        mixed = clips * self.current + before * self.previous + after * self.next
        return mixed.relu().flatten(0, 1)


class TemporalMaxPool(nn.Module):
    """Maps [B*T,C,h,w] to [B*ceil(T/2),C,h,w]: the maximum over 3 frames at stride 2."""

    def __init__(self, num_segments: int):
        super().__init__()
        self.num_segments = num_segments
        self.pool = nn.MaxPool3d((3, 1, 1), (2, 1, 1), padding=(1, 0, 0))

    def forward(self, x: Tensor) -> Tensor:
        clips = torch.unflatten(x, 0, (-1, self.num_segments)).transpose(1, 2)
        return self.pool(clips).transpose(1, 2).flatten(0, 1)


class TAM(FrameClassifier):
    family = "tam"
    tsn_groups = False

    @property
    def options(self) -> dict:
        return {"temporal_stride": isinstance(self.backbone.layer1[-1], TemporalMaxPool)}


def tam(
    depth: int, num_classes: int, num_segments: int, dropout: float = 0.5, temporal_stride: bool = False
) -> TAM:
    """Build TAM on a ResNet of depth 18 or 50 (the TAF paper's baseline has depth 50 and dropout 0.5).

    ``temporal_stride`` halves the number of frames after each of the first three stages. Such a model has no
    features per frame: it can be trained and evaluated, but not attacked.
    """
    frames = [num_segments]
    for _ in range(3):
        frames.append((frames[-1] + 1) // 2 if temporal_stride else num_segments)
    trunk = ResNet(depth, temporal=lambda channels, stage: TemporalAggregation(channels, frames[stage - 1]))
    if temporal_stride:
        for stage, layer in enumerate((trunk.layer1, trunk.layer2, trunk.layer3)):
            layer.append(TemporalMaxPool(frames[stage]))
    return TAM(trunk, num_classes, num_segments, dropout)
