"""Where a model looks: Grad-CAM of every frame, how it is spread over the frames, and pictures of it."""

import dataclasses
import math

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from taf_fast import ops
from taf_fast.adapt import features_and_logits, has_stages, stages
from taf_fast.clips import to_model_input
from taf_fast.data import Batch, ClipLoader, DataError
from taf_fast.run import ranks
from taf_fast.run.config import RunError
from taf_fast.run.trained import Trained

from .figures import draw_strips, strip_size


def attention(model: nn.Module, clips: Tensor, labels: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju et al., 2017) of every frame for the given classes, in eval mode.

    The gradient is that of the class's logit and only the positive part is kept; each clip is
    scaled by its maximum over all frames, so that frames of a clip compare.

    Args:
        model: see :func:`taf_fast.adapt`.
        clips: uint8 [B,T,H,W,3], or [B,T,3,H,W] as the model takes them.
        labels: int64 [B].

    Returns:
        float32 [B,T,h,w] in [0,1]; all 0 for a clip without positive attention.

    Raises:
        RunError: the model has no features for every frame.
    """
    was_training = model.training
    model.eval()
    x = to_model_input(model, clips)
    if has_stages(model):
        # The gradient is the head's alone: the trunk need not be remembered.
        with torch.no_grad():
            features, *others = stages(model, x)
        with torch.enable_grad():
            logits = model.head(features.requires_grad_(), *others)
    else:
        with torch.enable_grad():
            features, logits = features_and_logits(model, x)
    (gradient,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), features)
    model.train(was_training)
    if features.shape[1] != x.shape[1]:
        raise RunError(
            f"the model's features have {features.shape[1]} frames, expected one for each of the clip's "
            f"{x.shape[1]}: a model with a temporal stride has no attention to a frame"
        )
    cam = ops.frame_cam(features.detach(), gradient, relu=True).float()
    peak = cam.amax((1, 2, 3), keepdim=True)
    return cam / peak.where(peak > 0, 1)


def frame_shares(maps: Tensor) -> Tensor:
    """Each frame's share of its clip's attention: its sum over that of all frames.

    Args:
        maps: [B,T,h,w], at least 0, as :func:`attention` returns them.

    Returns:
        float64 [B,T], summing to 1 over T. In a clip without attention every frame has 1/T: none stands out.
    """
    sums = maps.double().sum((2, 3))
    total = sums.sum(1, keepdim=True)
    return torch.where(total > 0, sums / total, 1 / sums.shape[1])


def entropy(shares: Tensor) -> Tensor:
    """How evenly attention is spread over frames: ``-sum_t s_t log s_t / log T``.

    Args:
        shares: [B,T] of :func:`frame_shares`.

    Returns:
        [B] in [0,1]: 0 where one frame has all, 1 where all have the same, and so 1 for T = 1.
    """
    frames = shares.shape[1]
    if frames == 1:
        return torch.ones_like(shares[:, 0])
    return (torch.special.entr(shares).sum(1) / math.log(frames)).clamp(max=1)


def attention_rows(model: nn.Module, loader: ClipLoader, device: torch.device) -> list[dict]:
    """How the attention of ``model`` to the true class is spread, of every clip of ``loader`` that decodes.

    Ranks, each with its share of the clips, get the rows of all.

    Returns:
        Of each clip ``id``, ``label`` (the class's name), ``entropy`` (:func:`entropy`) and ``top_share``,
        the largest share of a frame, in [1/T,1]. They are 1 and 1/T for a clip without attention.
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
    """How many clips of :func:`attention_rows` have no attention at all, which counts as evenly spread."""
    # Of all that is measured, only shares that were set to the same are so even.
    return sum(row["entropy"] > 1 - 1e-9 for row in rows)


@dataclasses.dataclass(frozen=True)
class Strip:
    """A clip, uint8 [T,H,W,3], and under each model's name its attention to the clip's class, [T,h,w]."""

    id: str
    title: str
    clip: Tensor
    maps: dict[str, Tensor]


def load_clip(loader: ClipLoader, id: str | None) -> Batch:
    """The batch of one clip, as ``loader`` would give it.

    Args:
        id: None for the first clip that has no known defect.

    Raises:
        DataError: no such clip, or it cannot be read.
    """
    chosen = [clip for clip in loader.manifest.good if id in (None, clip.id)][:1]
    if not chosen:
        reason = loader.manifest.defects.get(id, "no such clip")
        raise DataError(f"clip {id!r}: {reason}, expected the id of a readable video")
    manifest = dataclasses.replace(loader.manifest, clips=tuple(chosen))
    alone = ClipLoader(
        manifest, loader.num_segments, loader.size, batch_size=1, train=False, view=loader.view
    )
    return next(iter(alone))


def strip(models: dict[str, Trained], id: str | None) -> Strip:
    """What models, by name, look at in one clip.

    Raises:
        DataError: see :func:`load_clip`.
        RunError: the models do not take the same frames and crop.
    """
    maps, first = {}, None
    for name, trained in models.items():
        batch = load_clip(trained.loader, id)
        first = first or batch
        if not torch.equal(batch.clips, first.clips):
            raise RunError(
                f"{name} takes other frames of a clip, or another size, than {next(iter(models))}: "
                "draw them in pictures of their own"
            )
        on_device = (batch.clips.to(trained.device), batch.labels.to(trained.device))
        maps[name] = attention(trained.model, *on_device)[0].cpu()
    label = trained.loader.manifest.classes[first.labels[0]]
    return Strip(first.ids[0], f"{first.ids[0]}: {label}", first.clips[0].cpu(), maps)


def strip_rows(id: str, maps: dict[str, Tensor]) -> list[dict]:
    """The numbers of a strip: ``clip``, ``model``, ``frame`` (from 0), the frame's ``share`` of the clip's
    attention, and ``mean``, its mean attention in [0,1], the clip's largest being 1.

    Args:
        maps: name of the model -> [T,h,w] of :func:`attention`.
    """
    return [
        {"clip": id, "model": name, "frame": frame, "share": share, "mean": heat[frame].mean().item()}
        for name, heat in maps.items()
        for frame, share in enumerate(frame_shares(heat[None])[0].tolist())
    ]


def strip_figure(clip: Tensor, maps: dict[str, Tensor], title: str) -> Figure:
    """The frames of a clip, and a row of them for every model with its attention laid over and each frame's
    share of it below.

    Args:
        clip: uint8 [T,H,W,3].
        maps: name of the model -> [T,h,w] of :func:`attention`.
    """
    return strips_figure([Strip("", title, clip, maps)])


def strips_figure(strips: list[Strip]) -> Figure:
    """:func:`strip_figure` of several clips, one below the other."""
    sizes = [strip_size(strip.clip, 1 + len(strip.maps)) for strip in strips]
    widths, heights = zip(*sizes, strict=True)
    figure = Figure(figsize=(max(widths), sum(heights)), layout="constrained")
    parts = figure.subfigures(len(strips), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, strip in zip(parts, strips, strict=True):
        draw_strips(part, [("frames", strip.clip, None, []), *attended(strip.clip, strip.maps)], strip.title)
    return figure


def attended(clip: Tensor, maps: dict[str, Tensor]) -> list[tuple[str, Tensor, Tensor, list[str]]]:
    """For :func:`taf_fast.report.figures.draw_strips`: the clip under each map, above the frames' shares."""
    return [
        (name, clip, heat, [f"{100 * share:.0f} %" for share in frame_shares(heat[None])[0].tolist()])
        for name, heat in maps.items()
    ]
