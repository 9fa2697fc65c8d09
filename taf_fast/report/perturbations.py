"""A clip and its adversarial perturbations, with the model's attention (the paper's Fig. 3)."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from taf_fast.report.figures import Row, draw_strips, plain_text, strip_size, use_fonts
from taf_fast.report.strips import Seen, attended, said


@plain_text
def perturbations_figure(
    pixels: dict[str, Tensor], seen: dict[str, Seen], label: str, frames: Sequence[int], title: str
) -> Figure:
    """Draw the clips of :func:`taf_fast.measure.perturbations.perturb`.

    Each kind shows its frames, and again with the attention laid over them and each frame's share of it
    below.

    Args:
        pixels: of every kind of clip, float [T,3,H,W] in [0,1].
        seen: what the model makes of every kind.
        label: the name of the true class.
        frames: their numbers in the video.
    """
    use_fonts([title, label, *(found.predicted for found in seen.values())])
    words = [f"frame {number}" for number in frames]
    rows = []
    for kind, clip in pixels.items():
        shown = (255 * clip).round().byte().movedim(1, -1)
        rows.append(Row(f"{kind}: {said(label, seen[kind])}", shown, words))
        rows.append(attended(f"attention, {kind}", shown, words, label, seen[kind]))
    figure = Figure(figsize=strip_size(rows, title), layout="constrained")
    draw_strips(figure, rows, title)
    return figure


def setting(epsilon: float, step_size: float, steps: int) -> str:
    """An attack's sizes in words, as the paper writes them."""
    return f"epsilon {_of_255(epsilon)}, step size {_of_255(step_size)}, K = {steps}"


def _of_255(amount: float) -> str:
    levels = round(255 * amount, 4)
    return f"{levels:g}/255"
