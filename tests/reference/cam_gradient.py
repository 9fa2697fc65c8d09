"""A literal implementation of the attack's head and its gradient: a forward, and autograd twice.

Nothing here comes from taf_fast.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def head(features: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    """Pooling, dropout, linear and consensus: [B,T,C,h,w] -> logits [B,K]."""
    pooled = features.mean((3, 4))
    if mask is not None:
        pooled = pooled * mask
    return F.linear(pooled, weight, bias).mean(1)


def clip_scores(cam: Tensor, denominator: str, eps: float) -> Tensor:
    """Eqs. 3 and 4 for one clip [T,h,w]; the first of equal extremes, no slope where eps applies."""
    flat = cam.reshape(-1)
    values = flat.tolist()
    minimum, maximum = flat[values.index(min(values))], flat[values.index(max(values))]
    d = maximum if denominator == "max" else maximum - minimum
    if abs(d.item()) < eps:
        d = torch.tensor(-eps if d.item() < 0 else eps, dtype=cam.dtype)
    return ((cam - minimum) / d).sum((1, 2))


def cam_gradient(
    features, weight, bias, targets, num_frames, denominator="max", eps=1e-6, mask=None, frames=None
):
    """-> dL/dF, the loss of every clip, the scores of every frame.

    ``frames`` [B,N] are the frames to average over, where two scores may be too close for rounding to tell
    which is lower; None for the lowest.
    """
    features = features.detach().clone().requires_grad_()
    logits = head(features, weight, bias, mask)
    cross_entropy = F.cross_entropy(logits, targets, reduction="sum")
    (grads,) = torch.autograd.grad(cross_entropy, features, create_graph=True)
    cams = (grads.mean((3, 4), keepdim=True) * features).sum(2)
    losses, scores = [], []
    for b, cam in enumerate(cams):
        clip = clip_scores(cam, denominator, eps)
        order = sorted(range(len(clip)), key=lambda t: (clip[t].item(), t))  # noqa: B023
        chosen = order[:num_frames] if frames is None else frames[b].tolist()
        losses.append(clip[chosen].mean())
        scores.append(clip)
    (gradient,) = torch.autograd.grad(torch.stack(losses).sum(), features)
    return gradient, torch.stack(losses).detach(), torch.stack(scores).detach()
