"""Frames of a clip with the attention of models laid over them."""

import dataclasses
from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from taf_fast.measure.attention import frame_shares
from taf_fast.report.figures import Row, draw_strips, plain_text, strip_size, use_fonts


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a model makes of a clip.

    ``heat`` is its attention to the true class, float32 [T,h,w] of :func:`taf_fast.measure.attention.attend`,
    ``predicted`` the name of the class that it predicts, ``score`` the probability of this class and
    ``true_score`` that of the true class, in [0,1].
    """

    heat: Tensor
    predicted: str
    score: float
    true_score: float


def seen(heat: Tensor, probabilities: Tensor, label: int, classes: Sequence[str]) -> Seen:
    """The attention and the probabilities [classes] of one clip of class ``label``."""
    best = int(probabilities.argmax())
    return Seen(heat.cpu(), classes[best], probabilities[best].item(), probabilities[label].item())


@dataclasses.dataclass(frozen=True)
class Strip:
    """A clip, uint8 [T,H,W,3] on the CPU, the numbers of its frames in the video, from 0, the name of its
    class, and what models make of it by their names."""

    id: str
    label: str
    clip: Tensor
    frames: Sequence[int]
    models: dict[str, Seen]


def strip_rows(strip: Strip) -> list[dict]:
    """The numbers of a strip.

    Returns:
        A row for every model and frame: ``clip``, ``class``, ``model``, ``predicted`` (a class's name),
        ``score`` and ``true_score`` (probabilities of the predicted and of the true class), ``frame`` (from
        0), ``video_frame`` (its number in the video, from 0), ``share``, the frame's share of the clip's
        attention, None for a clip without any, and ``mean``, its mean attention in [0,1], where 1 is the
        clip's largest.
    """
    return [
        {
            "clip": strip.id,
            "class": strip.label,
            "model": name,
            "predicted": found.predicted,
            "score": found.score,
            "true_score": found.true_score,
            "frame": frame,
            "video_frame": strip.frames[frame],
            "share": share,
            "mean": found.heat[frame].mean().item(),
        }
        for name, found in strip.models.items()
        for frame, share in enumerate(_shares(found.heat))
    ]


def _shares(heat: Tensor) -> list[float | None]:
    return frame_shares(heat[None])[0].tolist() if heat.any() else [None] * len(heat)


@plain_text
def strips_figure(strips: list[Strip], titled: bool = True) -> Figure:
    """Draw clips one below the other.

    Each shows its frames, and again for every model, with the model's attention laid over them and each
    frame's share of it below.

    Args:
        titled: with the id of every clip above it.
    """
    use_fonts([text for strip in strips for text in (strip.id, strip.label, *strip.models)])
    blocks = []
    for strip in strips:
        words = [f"frame {number}" for number in strip.frames]
        rows = [Row(f'frames, true "{strip.label}"', strip.clip, words)]
        rows += [
            attended(name, strip.clip, words, strip.label, found) for name, found in strip.models.items()
        ]
        blocks.append((rows, f"clip {strip.id}" if titled else ""))
    sizes = [strip_size(*block) for block in blocks]
    widths, heights = zip(*sizes, strict=True)
    figure = Figure(figsize=(max(widths), sum(heights)), layout="constrained")
    parts = figure.subfigures(len(strips), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, (rows, title) in zip(parts, blocks, strict=True):
        draw_strips(part, rows, title)
    return figure


def attended(name: str, clip: Tensor, words: Sequence[str], label: str, found: Seen) -> Row:
    """The clip under a model's attention, with what the model predicts, and under every frame its share.

    Args:
        name: of the model, or of the clip.
        words: about every frame.
        label: the clip's class.
    """
    caption = f"{name}: {said(label, found)}"
    if not found.heat.any():
        return Row(f"{caption}, no attention to the true class", clip, words, found.heat)
    shares = [
        f"{word}\n{100 * (share or 0):.0f} %" for word, share in zip(words, _shares(found.heat), strict=True)
    ]
    return Row(caption, clip, shares, found.heat)


def said(label: str, found: Seen) -> str:
    """The predicted and the true class, with their probabilities, in words."""
    if found.predicted == label:
        return f'predicted and true "{label}" ({100 * found.score:.0f} %)'
    return (
        f'predicted "{found.predicted}" ({100 * found.score:.0f} %), '
        f'true "{label}" ({100 * found.true_score:.0f} %)'
    )
