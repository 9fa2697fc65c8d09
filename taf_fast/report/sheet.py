"""A sheet of the clips of a batch with their labels."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from taf_fast.report.figures import Row, draw_strips, plain_text, strip_size

# More clips than these make a picture that few programs show.
_MOST = 64


@plain_text
def sheet_figure(clips: Tensor, labels: Sequence[str], ids: Sequence[str]) -> Figure:
    """Draw the frames of the first 64 clips, one clip below the other, under its label and id.

    Args:
        clips: uint8 [B,T,H,W,3], on the CPU.
        labels, ids: B names.
    """
    shown = min(len(clips), _MOST)
    words = [""] * clips.shape[1]
    rows = [
        Row(f"{label} ({id})", frames, words)
        for frames, label, id in zip(clips[:shown], labels, ids, strict=False)
    ]
    counted = f"{len(clips)} clips" if shown == len(clips) else f"{shown} of {len(clips)} clips"
    title = f"a training batch: {counted} of {clips.shape[1]} frames"
    figure = Figure(strip_size(rows, title), layout="constrained")
    draw_strips(figure, rows, title)
    return figure
