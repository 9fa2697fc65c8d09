"""Pictures, each beside the numbers it was drawn from."""

from pathlib import Path

import numpy as np
import torch.nn.functional as F
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from taf_fast.files import write_atomically, write_csv

# Between the frames of a strip, in pixels.
_GAP = 2


def save(figure: Figure, rows: list[dict], path: Path) -> None:
    """Write the picture to ``path`` (PNG) and ``rows`` beside it, to the same name with ``.csv``."""
    write_csv(path.with_suffix(".csv"), rows)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110, format="png"))


def strip_size(frames: Tensor, rows: int) -> tuple[float, float]:
    """Width and height in inches of ``rows`` strips of frames [T,H,W,3] under a title."""
    count, height, width, _ = frames.shape
    return max(4.0, 1.3 * count), 0.3 + rows * (1.3 * height / width + 0.4)


def draw_strips(
    part: Figure | SubFigure, strips: list[tuple[str, Tensor, Tensor | None, list[str]]], title: str
) -> None:
    """Draw strips of frames, one below the other.

    Args:
        strips: of each its name, the frames uint8 [T,H,W,3], a heat map float [T,h,w] in [0,1] to lay over
            them or None, and T words to write below them, or none.
    """
    part.suptitle(title, fontsize=10)
    axes = part.subplots(len(strips), 1, squeeze=False)[:, 0]
    for axis, (name, frames, heat, words) in zip(axes, strips, strict=True):
        count, height, width, _ = frames.shape
        axis.imshow(_side_by_side(frames.numpy(), 255))
        if heat is not None:
            large = F.interpolate(heat[:, None], size=(height, width), mode="bilinear")[:, 0]
            axis.imshow(_side_by_side(large.numpy(), np.nan), cmap="jet", alpha=0.45, vmin=0, vmax=1)
        axis.set_title(name, fontsize=8, loc="left", pad=2)
        centres = [frame * (width + _GAP) + (width - 1) / 2 for frame in range(count)]
        axis.set_xticks(centres if words else [], words, fontsize=7)
        axis.set_yticks([])
        axis.tick_params(length=0, pad=1)
        axis.spines[:].set_visible(False)


def _side_by_side(frames: np.ndarray, between: float) -> np.ndarray:
    """Frames [T,H,W,...] -> one picture [H, T*W + gaps, ...]."""
    gap = np.full_like(frames[0, :, :_GAP], between)
    return np.concatenate([part for frame in frames for part in (gap, frame)][1:], axis=1)
