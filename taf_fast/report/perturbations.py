"""What adversarial perturbations do to a model's attention (the paper's Fig. 3)."""

from collections.abc import Callable

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from taf_fast.clips import per_channel, pixel_range, to_model_input

from .attention import attended, attention, frame_shares
from .figures import draw_strips, strip_size

# Of the attacks' random labels: the same for all of them, and for the same command.
_SEED = 0


def perturb(
    model: nn.Module, clip: Tensor, label: Tensor, augments: dict[str, Callable]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A clip and what augmentations make of it, with the model's attention to the true class of each.

    Args:
        model: in eval mode, so that the same comes out every time.
        clip: uint8 [1,T,H,W,3].
        label: int64 [1].
        augments: name -> :class:`taf_fast.TemporalAugment` or one that is called alike.

    Returns:
        By name, "clean" first: pixels, float [T,3,H,W] in [0,1]; and attention, float32 [T,h,w] in [0,1],
        each scaled by its own maximum. Both on the CPU.

    Raises:
        RunError: the model has no features for every frame.
    """
    clean = to_model_input(model, clip)
    inputs, maps = {"clean": clean}, {"clean": attention(model, clean, label)[0].cpu()}
    for name, augment in augments.items():
        generator = torch.Generator(clean.device).manual_seed(_SEED)
        inputs[name] = augment(model, clean, label, generator)
        maps[name] = attention(model, inputs[name], label)[0].cpu()
    low, high = (per_channel(bound) for bound in pixel_range(model, clean))
    pixels = {name: ((x[0] - low) / (high - low)).cpu() for name, x in inputs.items()}
    return pixels, maps


def perturbation_rows(pixels: dict[str, Tensor], maps: dict[str, Tensor]) -> list[dict]:
    """The numbers of :func:`perturb`: ``kind``, ``frame`` (from 0), the frame's ``share`` of the attention
    and ``linf``, its largest difference from the clean frame, in pixels of range [0,1]."""
    return [
        {"kind": kind, "frame": frame, "share": share, "linf": difference[frame].max().item()}
        for kind, heat in maps.items()
        for difference in [(pixels[kind] - pixels["clean"]).abs()]
        for frame, share in enumerate(frame_shares(heat[None])[0].tolist())
    ]


def perturbations_figure(pixels: dict[str, Tensor], maps: dict[str, Tensor], title: str) -> Figure:
    """Of every kind of :func:`perturb` the frames, and again with the attention laid over and each frame's
    share of it below."""
    strips = []
    for kind, clip in pixels.items():
        frames = (255 * clip).round().byte().movedim(1, -1)
        strips += [(kind, frames, None, []), *attended(frames, {f"attention, {kind}": maps[kind]})]
    figure = Figure(figsize=strip_size(frames, len(strips)), layout="constrained")
    draw_strips(figure, strips, title)
    return figure
