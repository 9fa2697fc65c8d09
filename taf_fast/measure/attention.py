"""Where a model looks: Grad-CAM of every frame, and its spread over the frames."""

import math
import statistics

import torch
from torch import Tensor, nn

from taf_fast import ops
from taf_fast.data import ClipLoader
from taf_fast.errors import RunError
from taf_fast.measure.base import Measure
from taf_fast.measure.evaluate import evaluating
from taf_fast.models.contract import StagedView, view_of
from taf_fast.models.pixels import to_model_input
from taf_fast.process import ranks


def attention(model: nn.Module, clips: Tensor, labels: Tensor) -> Tensor:
    """The maps of :func:`attend`."""
    return attend(model, clips, labels)[0]


def attend(model: nn.Module, clips: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Grad-CAM (Selvaraju et al., 2017) of every frame for the given classes, in eval mode.

    The weights of the features are the gradient of the class's logit. Only the positive part is kept, and
    each clip is scaled by its maximum over all frames, so that the frames of a clip compare.

    Args:
        model: see :func:`taf_fast.adapt`.
        clips: uint8 [B,T,H,W,3], or [B,T,3,H,W] as the model takes them.
        labels: int64 [B].

    Returns:
        The maps, float32 [B,T,h,w] in [0,1], all 0 for a clip without positive attention; and the
        probabilities of the classes, float32 [B,classes].

    Raises:
        RunError: the model does not have features for every frame, or its attention is not finite.
    """
    x = to_model_input(model, clips)
    view = view_of(model)
    with evaluating(model):
        if isinstance(view, StagedView):
            # Only the head needs a gradient, so the trunk records none.
            with torch.no_grad():
                features, *others = view.stages(x)
            with torch.enable_grad():
                logits = view.head(features.requires_grad_(), *others)
        else:
            with torch.enable_grad():
                features, logits = view.features_and_logits(x)
        (gradient,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), features)
    if features.shape[1] != x.shape[1]:
        raise RunError(
            f"the model's features have {features.shape[1]} frames, expected one for each of the clip's "
            f"{x.shape[1]}: a model with a temporal stride has no attention to a frame"
        )
    cam = ops.frame_cam(features.detach(), gradient, relu=True).float()
    if not cam.isfinite().all():
        raise RunError("the model's attention to a clip is NaN or infinite, expected finite numbers")
    peak = cam.amax((1, 2, 3), keepdim=True)
    return cam / peak.where(peak > 0, 1), logits.detach().float().softmax(1)


def frame_shares(maps: Tensor) -> Tensor:
    """Each frame's share of its clip's attention: its sum over that of all frames.

    Args:
        maps: [B,T,h,w], at least 0, as :func:`attention` returns them.

    Returns:
        float64 [B,T], summing to 1 over T; 1/T for every frame of a clip without attention.
    """
    sums = maps.double().sum((2, 3))
    total = sums.sum(1, keepdim=True)
    return torch.where(total > 0, sums / total, 1 / sums.shape[1])


def entropy(shares: Tensor) -> Tensor:
    """The normalised entropy of attention over frames: ``-sum_t s_t log s_t / log T``.

    Args:
        shares: [B,T] of :func:`frame_shares`.

    Returns:
        float64 [B] in [0,1]: 0 if one frame has all attention, 1 if all frames have the same; 1 for T = 1.
    """
    frames = shares.shape[1]
    if frames == 1:
        return torch.ones_like(shares[:, 0])
    return (torch.special.entr(shares).sum(1) / math.log(frames)).clamp(max=1)


def attention_rows(model: nn.Module, loader: ClipLoader, device: torch.device) -> list[dict]:
    """The spread of the attention of ``model`` to the true class, for every clip of ``loader`` that decodes.

    Ranks, each with its share of the clips, all return the rows of all clips.

    Returns:
        A row for every clip: ``id``, ``label`` (the class's name), ``entropy`` (:func:`entropy`) and
        ``top_share``, the largest share of a frame, in [1/T,1]. They are 1 and 1/T for a clip without
        attention.

    Raises:
        DataError: too many clips cannot be decoded.
        RunError: the model does not have features for every frame.
    """
    rows = {}
    with ranks.together():
        for batch in loader:
            maps = attention(model, batch.clips.to(device), batch.labels.to(device))
            shares = frame_shares(maps).cpu()
            columns = (batch.labels, entropy(shares), shares.amax(1))
            for id, label, spread, top in zip(batch.ids, *(c.tolist() for c in columns), strict=True):
                rows[id] = {
                    "id": id,
                    "label": loader.manifest.classes[label],
                    "entropy": spread,
                    "top_share": top,
                }
    return list(ranks.union(rows).values())


def without_attention(rows: list[dict]) -> int:
    """The number of clips in the rows of :func:`attention_rows` that have no attention at all."""
    # Measured shares are never this even; only shares set to 1/T are.
    return sum(row["entropy"] > 1 - 1e-9 for row in rows)


def summary(rows: list[dict]) -> dict[str, float]:
    """The means of ``entropy`` and ``top_share`` over the rows of :func:`attention_rows`, at least one."""
    return {name: statistics.fmean(row[name] for row in rows) for name in ("entropy", "top_share")}


ATTENTION = Measure(
    name="attention",
    columns=("entropy", "top_share"),
    rows=attention_rows,
    numbers=lambda rows: {f"attention_{name}": mean for name, mean in summary(rows).items()},
)
