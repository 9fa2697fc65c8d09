"""The shape all frame-wise video classifiers share: 2D trunk -> pool -> linear -> mean over frames."""

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class FrameClassifier(nn.Module):
    """Clips [B,T,3,H,W], normalised by ``mean`` and ``std`` -> logits [B,num_classes].

    The logits are the mean over frames of one linear layer on every frame's pooled features
    (the average consensus of TSN). ``head(features(clips))`` equals ``model(clips)``.

    Args:
        backbone: takes [B*T,3,H,W] frames, returns [B*T,out_channels,h,w]; has ``out_channels``.
        num_classes, num_segments: K and T, at least 1.
        dropout: probability on the pooled features, in [0,1).
    """

    def __init__(self, backbone: nn.Module, num_classes: int, num_segments: int, dropout: float):
        super().__init__()
        if num_classes < 1 or num_segments < 1:
            raise ValueError(
                f"num_classes and num_segments must be at least 1, got {num_classes} and {num_segments}"
            )
        self.num_classes, self.num_segments = num_classes, num_segments
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(backbone.out_channels, num_classes)
        nn.init.normal_(self.fc.weight, 0, 0.001)
        nn.init.zeros_(self.fc.bias)
        # Not in the state dict: they belong to the preprocessing, and official files lack them.
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD), persistent=False)

    def features(self, clips: Tensor) -> Tensor:
        """Clips [B,T,3,H,W] -> the trunk's output [B,T,C,h,w]. Raises ValueError for another T."""
        if clips.dim() != 5 or clips.shape[1] != self.num_segments or clips.shape[2] != 3:
            raise ValueError(
                f"expected clips of shape [B,{self.num_segments},3,H,W], got {list(clips.shape)}"
            )
        return self.backbone(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])

    def head(self, features: Tensor) -> Tensor:
        """Features [B,T,C,h,w] -> logits [B,num_classes]."""
        return self.fc(self.dropout(features.mean((-2, -1)))).mean(1)

    @property
    def linear_head(self) -> tuple[nn.Dropout, nn.Linear]:
        """Declares that ``head`` is: mean over h,w, this dropout, this linear layer, mean over frames."""
        return self.dropout, self.fc

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(self.features(clips))
