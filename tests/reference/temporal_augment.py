"""The TAF paper's equations 2 to 7 in plain PyTorch, by full double backward through the whole model.

Slow and literal on purpose; shares nothing with the package. Statistics are frozen by turning a copy
of the model to eval mode with the batch's own mean and variance in place of the running ones.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def cam(features, gradient, relu=False):
    weights = gradient.mean(dim=(3, 4), keepdim=True)
    maps = (weights * features).sum(dim=2)
    return maps.clamp(min=0) if relu else maps


def least_attention_loss(maps, num_frames, denominator):
    low, high = maps.amin(dim=(1, 2, 3), keepdim=True), maps.amax(dim=(1, 2, 3), keepdim=True)
    scale = high if denominator == "max" else high - low
    # If all channels are zero, the map and its maximum are 0: the floor keeps Eq. 3 finite.
    scale = torch.where(scale.abs() < 1e-6, torch.where(scale < 0, -1e-6, 1e-6), scale)
    normalised = (maps - low) / scale
    sums = normalised.sum(dim=(2, 3))
    chosen = sums.sort(dim=1, stable=True)
    return chosen.values[:, :num_frames].mean(dim=1), chosen.indices[:, :num_frames]


def frozen_copy(model, x):
    """A copy of ``model`` whose batch norms use the statistics of batch ``x`` as constants."""
    model = copy.deepcopy(model)
    seen, hooks = {}, []

    def remember(norm, args):
        value = args[0].to(norm.weight.dtype)  # autocast hands over bfloat16
        axes = [d for d in range(value.dim()) if d != 1]
        seen[norm] = value.mean(axes), value.var(axes, unbiased=False)

    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    for norm in norms:
        hooks.append(norm.register_forward_pre_hook(remember))
    with torch.no_grad():
        model.head(model.features(x))
    for hook in hooks:
        hook.remove()
    for norm, (mean, variance) in seen.items():
        norm.running_mean, norm.running_var = mean, variance
        norm.eval()
    return model


def input_gradient(model, x, targets, rows, num_frames, denominator, relu=False, gradient="loss"):
    x = x.clone().requires_grad_()
    features = model.features(x)
    logits = model.head(features)
    if gradient == "loss":
        scalar = sum(F.cross_entropy(logits[r : r + 1], targets[r : r + 1]) for r in rows)
    else:
        scalar = sum(logits[r, targets[r]] for r in rows)
    (weights,) = torch.autograd.grad(scalar, features, create_graph=True)
    loss, frames = least_attention_loss(cam(features, weights, relu)[rows], num_frames, denominator)
    return torch.autograd.grad(loss.sum(), x)[0], frames, loss.detach()


def attack(
    model,
    x,
    targets,
    rows,
    epsilon,
    step_size,
    steps,
    num_frames,
    denominator,
    attack_bn,
    relu=False,
    gradient="loss",
    perturb="all",
    clamp=True,
):
    """-> perturbed clips [len(rows),T,3,H,W], and where every step's sign is more than rounding noise.

    epsilon and step_size in pixels; ``model.mean`` and ``model.std`` translate.
    """
    mean, std = (v.view(3, 1, 1) for v in (model.mean, model.std))
    model = frozen_copy(model, x) if attack_bn == "frozen" else copy.deepcopy(model)
    current, certain = x.clone(), torch.ones_like(x, dtype=torch.bool)
    for _ in range(steps):
        grad, frames, _ = input_gradient(
            model, current, targets, rows, num_frames, denominator, relu, gradient
        )
        for row, chosen in zip(rows, frames, strict=True):
            moved = current[row] + step_size / std * grad[row].sign()
            moved = torch.max(torch.min(moved, x[row] + epsilon / std), x[row] - epsilon / std)
            if clamp:
                moved = torch.max(torch.min(moved, (1 - mean) / std), -mean / std)
            if perturb == "selected":
                kept = [t for t in range(x.shape[1]) if t not in chosen]
                moved[kept] = current[row][kept]
            sizes = grad[row].abs()
            certain[row] &= (sizes > 1e-11 * sizes.max()) | (sizes == 0)
            current = torch.cat([current[:row], moved[None], current[row + 1 :]])
    return current[rows], certain[rows]


class Net(nn.Module):
    """A small video classifier with everything that the attack may meet: frames mixed between convolutions,
    batch norm, ReLU in place, a shortcut, and (``deep_head``) a head that is not linear."""

    def __init__(self, classes=5, segments=4, channels=6, deep_head=False):
        super().__init__()
        self.segments = segments
        self.conv1, self.bn1 = nn.Conv2d(3, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.deep_head = (
            nn.Sequential(nn.Conv3d(channels, 8, (3, 1, 1), bias=False), nn.BatchNorm3d(8), nn.Softplus())
            if deep_head
            else None
        )
        self.fc = nn.Linear(8 if deep_head else channels, classes)
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]), persistent=False)
        self.register_buffer("std", torch.tensor([0.2, 0.25, 0.3]), persistent=False)
        for norm in (self.bn1, self.bn2):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.3)

    def features(self, clips):
        batch, segments = clips.shape[:2]
        x = self.relu(self.bn1(self.conv1(clips.flatten(0, 1))))
        video = x.view(batch, segments, *x.shape[1:])
        mixed = torch.cat([video[:, 1:, :2], torch.zeros_like(video[:, :1, :2])], 1)
        mixed = torch.cat([mixed, video[:, :, 2:]], 2).flatten(0, 1)
        y = self.bn2(self.conv2(mixed))
        y += x
        return self.relu(y).view(batch, segments, *y.shape[1:])

    def head(self, features):
        if self.deep_head is not None:
            return self.fc(self.deep_head(features.transpose(1, 2)).mean((2, 3, 4)))
        return self.fc(features.mean((3, 4))).mean(1)

    def forward(self, clips):
        return self.head(self.features(clips))


def clips_in_range(net, batch, segments, size, generator):
    """Random pixels in [0,1], normalised for ``net``, float64."""
    pixels = torch.rand(batch, segments, 3, size, size, generator=generator, dtype=torch.float64)
    return (pixels - net.mean.view(3, 1, 1)) / net.std.view(3, 1, 1)
