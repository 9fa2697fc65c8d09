"""A ResNet trunk (He et al., 2016; stride in the 3x3 convolution) with torchvision's parameter names.

The frames are in the batch dimension, [B*T,C,h,w], and the convolutions are spatial. A family of video models
puts its own module in one of two places:

- ``temporal``, before a block's first convolution, inside the residual branch (TSM, TAM, TPN);
- ``conv2``, the block's second convolution (GST).
"""

from collections.abc import Callable

from torch import Tensor, nn


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


def _conv3x3(channels: int, stride: int) -> nn.Conv2d:
    return conv(channels, channels, 3, stride)


class _Block(nn.Module):
    """The part around the residual branch that both kinds of block share.

    The shortcut sees the block's input before ``temporal``. With ``mixed_shortcut``, the convolution on the
    shortcut, if there is one, sees it after.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, temporal: nn.Module):
        super().__init__()
        self.temporal = temporal
        self.mixed_shortcut = False
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.temporal(x)
        y = self.branch(mixed)
        if self.downsample is not None:
            x = self.downsample(mixed if self.mixed_shortcut else x)
        y += x
        return self.relu(y)


class BasicBlock(_Block):
    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, temporal: nn.Module, conv2: Callable):
        super().__init__(in_channels, width, stride, temporal)
        self.conv1 = conv(in_channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv2(width, 1)
        self.bn2 = nn.BatchNorm2d(width)

    def branch(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x))


class Bottleneck(_Block):
    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, temporal: nn.Module, conv2: Callable):
        super().__init__(in_channels, 4 * width, stride, temporal)
        self.conv1 = conv(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv2(width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, 4 * width, 1)
        self.bn3 = nn.BatchNorm2d(4 * width)

    def branch(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


_LAYERS = {18: (BasicBlock, (2, 2, 2, 2)), 50: (Bottleneck, (3, 4, 6, 3))}


class ResNet(nn.Module):
    """Maps frames [B*T,3,H,W] to the last stage's output after its ReLU, [B*T,out_channels,H/32,W/32].

    Args:
        depth: 18 or 50.
        temporal: builds the module before a block's first convolution, from the channels of the block's input
            and the stage, 1 to 4; the module must keep its input's shape.
        conv2: builds a block's second convolution, from its channels and stride.
    """

    def __init__(
        self,
        depth: int,
        temporal: Callable[[int, int], nn.Module] = lambda channels, stage: nn.Identity(),
        conv2: Callable[[int, int], nn.Module] = _conv3x3,
    ):
        super().__init__()
        self.depth = depth
        block, counts = _LAYERS[depth]
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        channels = 64
        for stage, count in enumerate(counts, 1):
            width, blocks = 32 * 2**stage, []
            for index in range(count):
                stride = 2 if stage > 1 and index == 0 else 1
                blocks.append(block(channels, width, stride, temporal(channels, stage), conv2))
                channels = width * block.expansion
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.out_channels = channels
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def mixed_shortcut(self) -> bool:
        """Whether the convolution on each stage's first shortcut sees the output of ``temporal``."""
        return self.layer1[0].mixed_shortcut

    @mixed_shortcut.setter
    def mixed_shortcut(self, value: bool) -> None:
        for module in self.modules():
            if isinstance(module, _Block):
                module.mixed_shortcut = value

    def last_stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs of ``layer3`` (at H/16) and ``layer4`` (at H/32)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        shallow = self.layer3(self.layer2(self.layer1(x)))
        return shallow, self.layer4(shallow)

    def forward(self, x: Tensor) -> Tensor:
        return self.last_stages(x)[1]
