"""The base of all video classifiers, and of the frame-wise ones: trunk, pool, linear, mean over frames."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class VideoClassifier(nn.Module):
    """Maps clips [B,T,3,H,W], normalised by ``mean`` and ``std``, to logits [B,num_classes].

    Args:
        backbone: a :class:`taf_fast.models.resnet.ResNet`.
        num_classes, num_segments: K and T, at least 1.
        dropout: the probability of dropping a pooled feature, in [0,1).
        fc_std: standard deviation of the classifier's initial weights.

    Raises:
        ValueError: num_classes or num_segments is below 1.
    """

    #: The method, as in the model's name.
    family: str
    #: Whether :meth:`parameter_groups` returns TSN's groups; otherwise it treats all parameters alike.
    tsn_groups = True

    def __init__(
        self, backbone: nn.Module, num_classes: int, num_segments: int, dropout: float, fc_std: float
    ):
        super().__init__()
        if num_classes < 1 or num_segments < 1:
            raise ValueError(
                f"num_classes and num_segments must be at least 1, got {num_classes} and {num_segments}"
            )
        self.num_classes = num_classes
        self.num_segments = num_segments
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(backbone.out_channels, num_classes)
        nn.init.normal_(self.fc.weight, 0, fc_std)
        nn.init.zeros_(self.fc.bias)
        # Kept out of the state dict: they belong to the preprocessing, and official files lack them.
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD), persistent=False)

    @property
    def options(self) -> dict:
        """The options of :func:`taf_fast.models.build` that the weights depend on."""
        return {}

    def frames(self, clips: Tensor) -> Tensor:
        """Turn clips [B,T,3,H,W] into frames [B*T,3,H,W]. Raise ValueError for another T."""
        if clips.dim() != 5 or clips.shape[1] != self.num_segments or clips.shape[2] != 3:
            raise ValueError(
                f"expected clips of shape [B,{self.num_segments},3,H,W], got {list(clips.shape)}"
            )
        return clips.flatten(0, 1)

    def parameter_groups(
        self, weight_decay: float, fc_lr5: bool = False, head_factor: float = 1.0
    ) -> list[dict]:
        """Group the parameters for an optimiser, as in the family's official training.

        TSM and GST use TSN's groups: weights with the learning rate lr and weight decay, biases with 2 lr and
        no decay, batch norms with lr and no decay. TAM and TPN use lr and weight decay for all parameters.

        Args:
            weight_decay: weight decay of the decayed groups.
            fc_lr5: multiply the classifier's learning rates by 5 (weight 5 lr, bias 10 lr), for a random
                classifier on a trained trunk. TSM's training omits this when it fine-tunes a model on the
                data set that it was trained on.
            head_factor: multiply the learning rates of the linear classifiers, TPN's auxiliary one included.

        Returns:
            groups with ``params``, ``weight_decay`` and ``lr_scale``, the factor of the learning rate.

        Raises:
            ValueError: fc_lr5 is set for a family without TSN's groups.
        """
        if fc_lr5 and not self.tsn_groups:
            raise ValueError("fc_lr5 is a rule of TSM's training; this family has one learning rate for all")
        if fc_lr5:
            head_factor *= 5
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for module_name, module in self.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                scale, decay = 1.0, weight_decay
                if self.tsn_groups and isinstance(module, _BatchNorm):
                    decay = 0.0
                elif self.tsn_groups and name == "bias":
                    scale, decay = 2.0, 0.0
                if module_name in ("fc", "auxiliary.fc"):
                    scale *= head_factor
                groups.setdefault((scale, decay), []).append(parameter)
        return [
            {"params": parameters, "lr_scale": scale, "weight_decay": decay}
            for (scale, decay), parameters in groups.items()
        ]


class FrameClassifier(VideoClassifier):
    """Averages the logits of a linear layer on every frame's pooled features (TSN's average consensus).

    ``head(features(clips))`` equals ``model(clips)``.
    """

    def __init__(self, backbone: nn.Module, num_classes: int, num_segments: int, dropout: float):
        super().__init__(backbone, num_classes, num_segments, dropout, fc_std=0.001)

    def features(self, clips: Tensor) -> Tensor:
        """Map clips [B,T,3,H,W] to the trunk's output [B,T,C,h,w]. Raise ValueError for another T."""
        return torch.unflatten(self.backbone(self.frames(clips)), 0, (clips.shape[0], -1))

    def head(self, features: Tensor) -> Tensor:
        """Map features [B,T,C,h,w] to logits [B,num_classes]."""
        return self.fc(self.dropout(features.mean((-2, -1)))).mean(1)

    @property
    def linear_head(self) -> tuple[nn.Dropout, nn.Linear]:
        """Declares that ``head`` is a mean over h,w, this dropout, this linear layer and a mean over
        frames."""
        return self.dropout, self.fc

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(self.features(clips))
