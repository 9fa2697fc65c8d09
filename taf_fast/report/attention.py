"""Where a model looks: frames of a clip with the Grad-CAM of one or more models below them."""

import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from taf_fast import ops
from taf_fast.adapt import features_and_logits
from taf_fast.clips import to_model_input
from taf_fast.data import ClipLoader, DataError, Manifest
from taf_fast.run.checkpoint import load_model, require_classes


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
    """
    was_training = model.training
    model.eval()
    with torch.enable_grad():
        features, logits = features_and_logits(model, to_model_input(model, clips))
        (gradient,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), features)
    model.train(was_training)
    cam = ops.frame_cam(features.detach(), gradient, relu=True).float()
    peak = cam.amax((1, 2, 3), keepdim=True)
    return cam / peak.where(peak > 0, 1)


def draw_attention(path: Path, manifest: Manifest, clip: str | None, weights: dict[str, Path]) -> None:
    """Write a PNG: the sampled frames of a clip, and a row of them for every model, with the model's
    attention to the clip's true class laid over.

    Args:
        manifest: the videos the clip is one of.
        clip: its id, or None for the first that can be read.
        weights: name -> file of weights as a run leaves it; all take the same crop and frames.

    Raises:
        RunError: a checkpoint that does not fit.
        DataError: no such clip, or it cannot be decoded.
    """
    chosen = [entry for entry in manifest.good if clip in (None, entry.id)][:1]
    if not chosen:
        reason = manifest.defects.get(clip, "no such clip")
        raise DataError(f"clip {clip!r}: {reason}, expected the id of a readable video")
    manifest = dataclasses.replace(manifest, clips=tuple(chosen))
    maps: dict[str, Tensor] = {}
    for name, file in weights.items():
        model, info = load_model(file)
        require_classes(file, info, manifest.classes)
        batch = next(iter(ClipLoader(manifest, info.num_segments, info.size, batch_size=1, train=False)))
        maps[name] = attention(model, batch.clips, batch.labels)[0]
    _draw(path, batch.clips[0], maps, f"{chosen[0].id}: {manifest.classes[chosen[0].label]}")


def _draw(path: Path, clip: Tensor, maps: dict[str, Tensor], title: str) -> None:
    frames, height, width, _ = clip.shape
    figure = Figure(figsize=(1.3 * frames, 1.45 * (1 + len(maps))))
    axes = figure.subplots(1 + len(maps), frames, squeeze=False)
    figure.suptitle(title, fontsize=10)
    for axis_row, (name, heat) in zip(axes, [("frames", None), *maps.items()], strict=True):
        axis_row[0].set_ylabel(name, fontsize=9)
        for t, axis in enumerate(axis_row):
            axis.imshow(clip[t].numpy())
            if heat is not None:
                shown = F.interpolate(heat[None, t : t + 1], size=(height, width), mode="bilinear")
                axis.imshow(shown[0, 0].numpy(), cmap="jet", alpha=0.45, vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
    figure.tight_layout(pad=0.4)
    figure.savefig(path, dpi=110, format="png")
