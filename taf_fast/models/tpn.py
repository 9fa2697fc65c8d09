"""Temporal Pyramid Network (Yang et al., CVPR 2020) on TSM: features of two stages, fused over time."""

import torch
from torch import Tensor, nn

from taf_fast.models.classifier import VideoClassifier
from taf_fast.models.resnet import conv
from taf_fast.models.tsm import shifted_resnet

GROUPS = 32


class ConvBNReLU(nn.Sequential):
    """A convolution without bias, a batch norm and a ReLU, over frames (2D) or clips (3D)."""

    def __init__(self, convolution: nn.Conv2d | nn.Conv3d):
        norm = nn.BatchNorm2d if isinstance(convolution, nn.Conv2d) else nn.BatchNorm3d
        super().__init__(convolution, norm(convolution.out_channels), nn.ReLU(inplace=True))


class LevelFusion(nn.Module):
    """Fuses two levels [B,C/2,1,h,w] into [B,C,1,h,w]."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.levels = nn.ModuleList(
            ConvBNReLU(nn.Conv3d(half, half, 1, groups=GROUPS, bias=False)) for _ in range(2)
        )
        self.fusion = ConvBNReLU(nn.Conv3d(channels, channels, 1, bias=False))

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        return self.fusion(torch.cat([self.levels[0](shallow), self.levels[1](deep)], 1))


class TemporalPyramid(nn.Module):
    """Fuses the outputs of the last two stages, [B*T,C/2,2h,2w] and [B*T,C,h,w], into [B,C,h,w].

    Spatial modulation brings the shallow level to the shape of the deep one. Temporal modulation applies a
    temporal convolution to each level and takes its maximum over the clip. A top-down flow passes information
    between the levels, followed by a bottom-up flow on its result. Each flow is fused, and the two results
    are fused again.
    """

    def __init__(self, channels: int, num_segments: int):
        super().__init__()
        self.num_segments, half = num_segments, channels // 2
        self.spatial_modulation = ConvBNReLU(conv(half, channels, 3, stride=2))
        self.temporal_modulation = nn.ModuleList(
            nn.Conv3d(channels, half, (3, 1, 1), padding=(1, 0, 0), groups=GROUPS, bias=False)
            for _ in range(2)
        )
        self.bottom_up = nn.Conv3d(half, half, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.top_down_fusion = LevelFusion(channels)
        self.bottom_up_fusion = LevelFusion(channels)
        self.pyramid_fusion = ConvBNReLU(nn.Conv3d(2 * channels, channels, 1, bias=False))
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        levels = []
        for frames, modulation in zip(
            (self.spatial_modulation(shallow), deep), self.temporal_modulation, strict=True
        ):
            clips = torch.unflatten(frames, 0, (-1, self.num_segments)).transpose(1, 2)
            levels.append(modulation(clips).amax(2, keepdim=True))
        shallow, deep = levels
        shallow = shallow + deep
        top_down = self.top_down_fusion(shallow, deep)
        bottom_up = self.bottom_up_fusion(shallow, deep + self.bottom_up(shallow))
        return self.pyramid_fusion(torch.cat([top_down, bottom_up], 1)).squeeze(2)


class AuxiliaryHead(nn.Module):
    """Maps the shallow stage [B*T,C,h,w] to logits [B,num_classes], for an additional loss in training."""

    def __init__(self, channels: int, num_classes: int, num_segments: int, dropout: float):
        super().__init__()
        self.num_segments = num_segments
        self.conv = ConvBNReLU(conv(channels, 2 * channels, 3, stride=2))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2 * channels, num_classes)
        nn.init.xavier_uniform_(self.conv[0].weight)
        nn.init.normal_(self.fc.weight, 0, 0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, shallow: Tensor) -> Tensor:
        pooled = torch.unflatten(self.conv(shallow).mean((-2, -1)), 0, (-1, self.num_segments)).mean(1)
        return self.fc(self.dropout(pooled))


class TPN(VideoClassifier):
    """TPN on a shifted ResNet.

    TPN's last convolutions have no frame axis. Its features are therefore the output of the trunk's last
    stage, and its head also needs the stage before. ``auxiliary`` is a second classifier on that earlier
    stage; only training uses it.
    """

    family = "tpn"
    tsn_groups = False
    #: Weight of the auxiliary head's cross-entropy; that of the logits has weight 1.
    auxiliary_weight = 0.5

    def __init__(self, depth: int, num_classes: int, num_segments: int, dropout: float):
        trunk = shifted_resnet(depth, num_segments)
        super().__init__(trunk, num_classes, num_segments, dropout, fc_std=0.01)
        self.neck = TemporalPyramid(trunk.out_channels, num_segments)
        self.auxiliary = AuxiliaryHead(trunk.out_channels // 2, num_classes, num_segments, dropout)

    @property
    def options(self) -> dict:
        return {"mixed_shortcut": self.backbone.mixed_shortcut}

    def stages(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Map clips [B,T,3,H,W] to the arguments of both heads.

        Returns:
            the features [B,T,C,h,w] (the trunk's last stage) and the stage before, [B,T,C/2,2h,2w].

        Raises:
            ValueError: the clips have another T.
        """
        shallow, features = self.backbone.last_stages(self.frames(clips))
        return tuple(torch.unflatten(frames, 0, clips.shape[:2]) for frames in (features, shallow))

    def features(self, clips: Tensor) -> Tensor:
        """Map clips [B,T,3,H,W] to features [B,T,C,h,w], the first of :meth:`stages`."""
        return self.stages(clips)[0]

    def head(self, features: Tensor, shallow: Tensor) -> Tensor:
        """Map the outputs of :meth:`stages` to logits [B,num_classes]."""
        fused = self.neck(shallow.flatten(0, 1), features.flatten(0, 1))
        return self.fc(self.dropout(fused.mean((-2, -1))))

    def auxiliary_head(self, features: Tensor, shallow: Tensor) -> Tensor:
        """Map the outputs of :meth:`stages` to auxiliary logits [B,num_classes]."""
        return self.auxiliary(shallow.flatten(0, 1))

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(*self.stages(clips))


def tpn(
    depth: int,
    num_classes: int,
    num_segments: int,
    dropout: float = 0.5,
    mixed_shortcut: bool = True,
) -> TPN:
    """Build TPN on TSM with a ResNet of depth 18 or 50 (the TAF paper's baseline has depth 50 and dropout
    0.5).

    With ``mixed_shortcut`` the shortcut convolutions see shifted frames, as in TPN's own code; pass False for
    MMAction2's TPN. The weights have the same shapes, but the logits differ.
    """
    model = TPN(depth, num_classes, num_segments, dropout)
    model.backbone.mixed_shortcut = mixed_shortcut
    return model
