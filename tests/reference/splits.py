"""Modules of other libraries split by hand into ``features`` and ``head``."""

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


class Split(nn.Module):
    """What a subclass says is the reference. ``mean`` and ``std`` are those of the clips."""

    def __init__(self, module, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)):
        super().__init__()
        self.module = module
        self.mean, self.std = (torch.as_tensor(values, dtype=torch.float64) for values in (mean, std))

    def forward(self, clips):
        return self.head(self.features(clips))


class SplitFrameNet(Split):
    """A ResNet of timm over frames."""

    def features(self, clips):
        net = self.module.backbone
        x = net.maxpool(net.act1(net.bn1(net.conv1(clips.flatten(0, 1)))))
        return net.layer4(net.layer3(net.layer2(net.layer1(x)))).unflatten(0, clips.shape[:2])

    def head(self, features):
        return self.module.backbone.fc(features.mean((3, 4))).mean(1)


class SplitVideoMAE(Split):
    def features(self, clips):
        videomae = self.module.videomae
        tokens = videomae.encoder.layer[0](videomae.embeddings(clips, None))
        return tokens.view(len(clips), clips.shape[1] // 2, 2, 2, -1).permute(0, 1, 4, 2, 3)

    def head(self, features):
        tokens = features.permute(0, 1, 3, 4, 2).flatten(1, 3)
        with sdpa_kernel(SDPBackend.MATH):
            tokens = self.module.videomae.encoder.layer[1](tokens)
        return self.module.classifier(self.module.fc_norm(tokens.mean(1)))
