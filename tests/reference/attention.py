"""Grad-CAM (Selvaraju et al., 2017) of every frame in float64 loops, and its spread over frames."""

import copy
import math

import torch


def grad_cam(model, clip, label):
    """float64 [T,h,w] of one clip [T,3,H,W] as the model takes it: not scaled, its positive part alone."""
    model = copy.deepcopy(model).double().eval()
    features = model.features(clip[None].double()).detach().requires_grad_()
    model.head(features)[0, label].backward()
    maps = torch.zeros(features.shape[1], *features.shape[3:], dtype=torch.float64)
    for frame in range(features.shape[1]):
        for channel in range(features.shape[2]):
            weight = features.grad[0, frame, channel].mean()
            maps[frame] += weight * features[0, frame, channel].detach()
    return maps.clamp(min=0)


def shares(maps):
    """A list of T floats."""
    sums = [sum(value for row in frame for value in row) for frame in maps.tolist()]
    return [value / sum(sums) if sum(sums) else 1 / len(sums) for value in sums]


def entropy(parts):
    """In [0,1]; undefined for one part."""
    return -sum(part * math.log(part) for part in parts if part > 0) / math.log(len(parts))
