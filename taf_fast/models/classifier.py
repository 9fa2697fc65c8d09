"""What all video classifiers share, and the frame-wise ones: trunk -> pool -> linear -> mean over frames."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class VideoClassifier(nn.Module):
    """Clips [B,T,3,H,W], normalised by ``mean`` and ``std`` -> logits [B,num_classes].

    Args:
        backbone: a :class:`taf_fast.models.resnet.ResNet`.
        num_classes, num_segments: K and T, at least 1.
        dropout: probability on the pooled features, in [0,1).
        fc_std: of the normal distribution the classifier starts from.
    """

    #: The method, as in the model's name.
    family: str
    #: Groups of :meth:`parameter_groups`: TSN's, or all parameters alike.
    tsn_groups = True

    def __init__(
        self, backbone: nn.Module, num_classes: int, num_segments: int, dropout: float, fc_std: float
    ):
        super().__init__()
        if num_classes < 1 or num_segments < 1:
            raise ValueError(
                f"num_classes and num_segments must be at least 1, got {num_classes} and {num_segments}"
            )
        self.num_classes, self.num_segments = num_classes, num_segments
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(backbone.out_channels, num_classes)
        nn.init.normal_(self.fc.weight, 0, fc_std)
        nn.init.zeros_(self.fc.bias)
        # Not in the state dict: they belong to the preprocessing, and official files lack them.
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD), persistent=False)

    @property
    def options(self) -> dict:
        """Arguments of :func:`taf_fast.models.build` that the weights depend on, beside its first three."""
        return {}

    def frames(self, clips: Tensor) -> Tensor:
        """Clips [B,T,3,H,W] -> [B*T,3,H,W]. Raises ValueError for another T."""
        if clips.dim() != 5 or clips.shape[1] != self.num_segments or clips.shape[2] != 3:
            raise ValueError(
                f"expected clips of shape [B,{self.num_segments},3,H,W], got {list(clips.shape)}"
            )
        return clips.flatten(0, 1)

    def parameter_groups(self, weight_decay: float, fc_lr5: bool = False) -> list[dict]:
        """The parameters as the family's official training groups them, for an SGD optimiser.

        TSM and GST take TSN's groups. Weights: lr, decayed. Biases: 2 lr, not decayed. Batch norm: lr,
        not decayed. TAM and TPN treat all parameters alike: lr, decayed.

        Args:
            weight_decay: of the decayed groups.
            fc_lr5: 5 times that lr for the classifier, weight 5 lr and bias 10 lr, for one that starts
                from noise on a trained trunk. TSM's training leaves it out when it tunes a model on the
                data set it is of.

        Returns:
            Groups of ``params``, ``weight_decay`` and ``lr_scale``, the factor of the learning rate.

        Raises:
            ValueError: fc_lr5 for a family without such groups.
        """
        if fc_lr5 and not self.tsn_groups:
            raise ValueError("fc_lr5 is a rule of TSM's training; this family has one learning rate for all")
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for module_name, module in self.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                scale, decay = 1.0, weight_decay
                if self.tsn_groups and isinstance(module, _BatchNorm):
                    decay = 0.0
                elif self.tsn_groups and name == "bias":
                    scale, decay = 2.0, 0.0
                if fc_lr5 and module_name == "fc":
                    scale *= 5
                groups.setdefault((scale, decay), []).append(parameter)
        return [
            {"params": parameters, "lr_scale": scale, "weight_decay": decay}
            for (scale, decay), parameters in groups.items()
        ]


class FrameClassifier(VideoClassifier):
    """The logits are the mean over frames of one linear layer on every frame's pooled features (the
    average consensus of TSN). ``head(features(clips))`` equals ``model(clips)``."""

    def __init__(self, backbone: nn.Module, num_classes: int, num_segments: int, dropout: float):
        super().__init__(backbone, num_classes, num_segments, dropout, fc_std=0.001)

    def features(self, clips: Tensor) -> Tensor:
        """Clips [B,T,3,H,W] -> the trunk's output [B,T,C,h,w]. Raises ValueError for another T."""
        return torch.unflatten(self.backbone(self.frames(clips)), 0, (clips.shape[0], -1))

    def head(self, features: Tensor) -> Tensor:
        """Features [B,T,C,h,w] -> logits [B,num_classes]."""
        return self.fc(self.dropout(features.mean((-2, -1)))).mean(1)

    @property
    def linear_head(self) -> tuple[nn.Dropout, nn.Linear]:
        """Declares that ``head`` is: mean over h,w, this dropout, this linear layer, mean over frames."""
        return self.dropout, self.fc

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(self.features(clips))
