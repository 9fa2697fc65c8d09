"""Four ops written from their definitions, for clarity rather than speed; exact to rounding in float64.

Autograd differentiates them any number of times. They use nothing from taf_fast.
"""

import math

import torch
from torch import Tensor


def frame_cam(features: Tensor, grads: Tensor, relu: bool = False) -> Tensor:
    weights = grads if grads.dim() == 3 else grads.mean((3, 4))
    cam = torch.einsum("btc,btchw->bthw", weights, features)
    return cam.relu() if relu else cam


def cam_loss(cam: Tensor, num_frames: int, denominator: str = "max", eps: float = 1e-6):
    losses, all_scores, all_frames = [], [], []
    for clip in cam:
        flat = clip.reshape(-1)
        # topk and min may return any of several equal values; list.index returns the first.
        values = flat.tolist()
        minimum, maximum = flat[values.index(min(values))], flat[values.index(max(values))]
        d = maximum if denominator == "max" else maximum - minimum
        if abs(d.item()) < eps:
            d = torch.full_like(d, -eps if d.item() < 0 else eps)
        scores = ((clip - minimum) / d).sum((1, 2))
        frames = lowest(scores.tolist(), num_frames)
        losses.append(scores[frames].mean())
        all_scores.append(scores)
        all_frames.append(torch.tensor(frames))
    return torch.stack(losses), torch.stack(all_scores), torch.stack(all_frames)


def lowest(scores: list[float], count: int) -> list[int]:
    order = sorted(range(len(scores)), key=lambda t: (math.isnan(scores[t]), scores[t], t))
    return order[:count]


def pgd_step(x, grad, clean, step_size, epsilon, lower=None, upper=None) -> Tensor:
    def limit(value, channel):
        return value[channel].item() if isinstance(value, Tensor) else value

    if x is None:
        x = clean
    out = x.clone()
    for channel in range(x.shape[-3]):
        here = (..., channel, slice(None), slice(None))
        sign = (grad[here] > 0).to(x.dtype) - (grad[here] < 0).to(x.dtype)
        y = x[here] + limit(step_size, channel) * sign
        y = torch.maximum(y, clean[here] - limit(epsilon, channel))
        y = torch.minimum(y, clean[here] + limit(epsilon, channel))
        if lower is not None:
            y = y.clamp(min=limit(lower, channel))
        if upper is not None:
            y = y.clamp(max=limit(upper, channel))
        out[here] = y
    return out


def temporal_shift(x: Tensor, num_segments: int, fold_div: int = 8) -> Tensor:
    fold = x.shape[1] // fold_div
    frames = []
    for n in range(x.shape[0]):
        t = n % num_segments
        nothing = torch.zeros_like(x[n])
        after = x[n + 1] if t + 1 < num_segments else nothing
        before = x[n - 1] if t > 0 else nothing
        frames.append(torch.cat((after[:fold], before[fold : 2 * fold], x[n, 2 * fold :])))
    return torch.stack(frames) if frames else x.clone()


def assert_as_good_as_pytorch(actual: Tensor, exact: Tensor, plain: Tensor, floor: int = 4) -> None:
    """The error of `actual` against the float64 result is at most twice that of plain PyTorch.

    `plain` is the same quantity from plain PyTorch in the dtype under test. Where plain PyTorch happens to be
    nearly exact, `floor` roundings of the largest value are allowed. Where it overflows or divides by an eps
    below its smallest number, its error allows nothing. A float64 result must agree to 12 digits:
    there is no more exact result to compare with.
    """
    assert actual.shape == exact.shape
    assert exact.dtype == torch.float64
    if exact.numel() == 0:
        return
    error, own_error = ((x.cpu().double() - exact).abs() for x in (actual, plain))
    roundings = 1e-12 if actual.dtype == torch.float64 else floor * torch.finfo(actual.dtype).eps
    allowed = 2 * own_error.nan_to_num(0, posinf=0).max() + roundings * exact.abs().max()
    assert error.max() <= allowed, f"error {error.max():.3e}, allowed {allowed:.3e}"
