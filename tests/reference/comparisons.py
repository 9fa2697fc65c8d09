"""The paper's comparisons, implemented literally in float64: PGD on the cross-entropy, AdvProp's targeted
PGD, Gaussian noise, and Kim et al.'s mixing with every random number given."""

import copy

import numpy as np
import torch
import torch.nn.functional as F

from .temporal_augment import frozen_copy


def _limits(model, x, epsilon):
    mean, std = (v.view(3, 1, 1) for v in (model.mean, model.std))
    low = torch.max(x - epsilon / std, -mean / std)
    return low, torch.min(x + epsilon / std, (1 - mean) / std), std


def cross_entropy_attack(model, x, targets, rows, epsilon, step_size, steps, attack_bn):
    """-> perturbed clips of the rows, and where every step's sign is more than rounding noise."""
    low, high, std = _limits(model, x, epsilon)
    model = frozen_copy(model, x) if attack_bn == "frozen" else copy.deepcopy(model)
    current, certain = x.clone(), torch.ones_like(x, dtype=torch.bool)
    for _ in range(steps):
        at = current.clone().requires_grad_()
        logits = model.head(model.features(at))
        loss = sum(F.cross_entropy(logits[r : r + 1], targets[r : r + 1]) for r in rows)
        (grad,) = torch.autograd.grad(loss, at)
        for r in rows:
            certain[r] &= (grad[r].abs() > 1e-11 * grad[r].abs().max()) | (grad[r] == 0)
            moved = current[r] + step_size / std * grad[r].sign()
            current[r] = torch.max(torch.min(moved, high[r]), low[r])
    return current[rows], certain[rows]


def advprop_attack(auxiliary, x, targets, noise, epsilon, step_size, steps):
    """``auxiliary`` has the auxiliary batch norms for its own; ``noise`` is where to start, in epsilons."""
    low, high, std = _limits(auxiliary, x, epsilon)
    model = copy.deepcopy(auxiliary).eval()
    current = torch.max(torch.min(x + noise * epsilon / std, high), low)
    for _ in range(steps):
        at = current.clone().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(at), targets, reduction="sum"), at)
        current = torch.max(torch.min(current - step_size / std * grad.sign(), high), low)
    return current


def noisy(model, x, normal, epsilon, step_size):
    low, high, std = _limits(model, x, epsilon)
    return torch.max(torch.min(x + normal * step_size / std, high), low)


def mix(name, a, b, given):
    """-> mixed clips [B,T,3,H,W] and the weight of a. ``given``: lam, centre (t, y, x), mu, boxed."""
    a, b = (np.asarray(v, dtype=np.float64) for v in (a, b))
    _, frames, _, height, width = a.shape
    lam = given["lam"]
    if name == "mixup":
        return lam * a + (1 - lam) * b, lam
    exponent = {"cutmix": 1 / 2, "framemixup": 1, "cubemixup": 1 / 3}[name]
    ranges = []
    for length, middle, cut in zip(
        (frames, height, width),
        given["centre"],
        {"cutmix": (0, 1, 1), "framemixup": (1, 0, 0), "cubemixup": (1, 1, 1)}[name],
        strict=True,
    ):
        size = int(length * (1 - lam) ** exponent)
        start, stop = max(0, middle - size // 2), min(length, middle + size // 2)
        ranges.append(range(start, stop) if cut else range(length))
    volume = len(ranges[0]) * len(ranges[1]) * len(ranges[2]) / (frames * height * width)
    mu = given["mu"]
    out = a.copy() if name == "cutmix" else mu * a + (1 - mu) * b
    if name != "cutmix" and not given["boxed"]:
        return out, mu
    inside = b if name == "cutmix" or mu >= 0.5 else a
    for t in ranges[0]:
        for y in ranges[1]:
            for x in ranges[2]:
                out[:, t, :, y, x] = inside[:, t, :, y, x]
    if name == "cutmix":
        return out, 1 - volume
    return out, mu * (1 - volume) + (0 if mu >= 0.5 else volume)
