"""Pictures, each saved with the numbers that it shows."""

import dataclasses
import functools
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch.nn.functional as F
from cycler import cycler
from matplotlib import font_manager
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure, SubFigure
from matplotlib.ft2font import FT2Font
from torch import Tensor

from taf_fast.files import write_atomically, write_csv
from taf_fast.plain import printable

# The gap between the frames of a strip, in pixels.
_GAP = 2

#: The colour map of every picture: perceptually uniform, and the same order to colour-blind readers.
MAP = "viridis"

#: Colours that colour-blind readers tell apart (Okabe and Ito, 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

# How much of the colour is laid over a grey frame.
_ALPHA = 0.6

#: Decorates functions that draw or save: a name with dollar signs is not a formula, and lines differ in
#: colour, then in dashes. Fonts added by use_fonts are there until the function ends.
plain_text = matplotlib.rc_context(
    {
        "text.parse_math": False,
        "axes.prop_cycle": cycler(linestyle=["-", "--", ":", "-."]) * cycler(color=COLOURS),
    }
)


def use_fonts(texts: Iterable[str]) -> None:
    """Use installed fonts, too, for characters of ``texts`` that matplotlib's own font lacks.

    Call it in a function that is decorated with :data:`plain_text`, before anything is drawn.
    """
    missing = {ord(c) for c in "".join(texts) if c.isprintable()} - _characters()
    # The font of last resort has a box for every character.
    families = sorted(
        {font.name for font in font_manager.fontManager.ttflist if "Last Resort" not in font.name}
    )
    while missing and families:
        best = max(families, key=lambda family: len(missing & _characters_of(_file(family))))
        found = missing & _characters_of(_file(best))
        if not found:
            break
        matplotlib.rcParams["font.family"] = [*matplotlib.rcParams["font.family"], best]
        missing -= found


def _file(family: str) -> str:
    return font_manager.findfont(font_manager.FontProperties(family=[family]))


def _characters() -> frozenset[int]:
    """Those of the fonts in use."""
    return frozenset().union(*(_characters_of(_file(name)) for name in matplotlib.rcParams["font.family"]))


@functools.cache
def _characters_of(file: str) -> frozenset[int]:
    return frozenset(FT2Font(file).get_charmap())


def drawable(text: str) -> str:
    """Users' text as the fonts in use can draw it: a space for a tab, and for other characters that they
    lack a compatible one (a narrow letter for a wide one) or an escape.

    In an SVG whose text stays text, readers' fonts draw it.
    """
    text = printable(text.replace("\t", " "))
    if matplotlib.rcParams["svg.fonttype"] == "none":
        return text
    known = _characters()
    return "".join(c if c == "\n" or ord(c) in known else _replaced(c, known) for c in text)


def _replaced(character: str, known: frozenset[int]) -> str:
    compatible = unicodedata.normalize("NFKD", character)
    if all(ord(c) in known for c in compatible):
        return compatible
    return character.encode("ascii", "backslashreplace").decode()


def wrapped(text: str, inches: float) -> str:
    """Users' text, drawable, in lines of so many inches in a font of 8 points."""
    text = drawable(text)
    wide = any(unicodedata.east_asian_width(c) in "WF" for c in text)
    return textwrap.fill(text, int(inches * (8 if wide else 17)), break_on_hyphens=False)


def save(figure: Figure, rows: list[dict], path: Path) -> None:
    """Write the picture to ``path`` (PNG), and ``rows`` to the same name with the suffix ``.csv``."""
    write_csv(path.with_suffix(".csv"), rows)
    save_picture(figure, path)


@plain_text
def save_picture(figure: Figure, path: Path) -> None:
    """Write the picture to ``path`` (PNG)."""
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110, format="png"))


@dataclasses.dataclass(frozen=True)
class Row:
    """A strip to draw: its caption, frames uint8 [T,H,W,3], T words to write below them, and a heat map
    float [T,h,w] in [0,1] to lay over them, or None. Where the heat is 0, nothing is laid over."""

    caption: str
    frames: Tensor
    words: Sequence[str]
    heat: Tensor | None = None


def strip_size(rows: Sequence[Row], title: str) -> tuple[float, float]:
    """The width and height in inches of strips under a title, and with a colour bar next to them."""
    count, height, width, _ = rows[0].frames.shape
    across = _across(rows)
    lines = sum(wrapped(row.caption, across).count("\n") + 1 for row in rows)
    below = sum(max((word.count("\n") + 1 for word in row.words), default=0) for row in rows)
    captions = 0.15 * lines + 0.13 * below + 0.08 * len(rows)
    title_lines = wrapped(title, 0.8 * across).count("\n") + 1 if title else 0
    return across + 0.9, 0.1 + 0.2 * title_lines + captions + len(rows) * 1.3 * height / width


def _across(rows: Sequence[Row]) -> float:
    return max(4.0, 1.3 * len(rows[0].frames))


@plain_text
def draw_strips(part: Figure | SubFigure, rows: Sequence[Row], title: str) -> None:
    """Draw strips of frames, one below the other, under a title; heat over grey frames, with a colour bar."""
    use_fonts([title, *(row.caption for row in rows)])
    if title:
        part.suptitle(wrapped(title, 0.8 * _across(rows)), fontsize=10)
    axes = part.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axis, row in zip(axes, rows, strict=True):
        count, height, width, _ = row.frames.shape
        frames = _side_by_side(row.frames.numpy(), 255)
        if row.heat is None:
            axis.imshow(frames)
        else:
            # Over colours, those of the map would not be the ones of the bar.
            axis.imshow(frames @ [0.299, 0.587, 0.114], cmap="gray", vmin=0, vmax=255)
            large = F.interpolate(row.heat[:, None], size=(height, width), mode="bilinear")[:, 0]
            heat = _side_by_side(large.numpy(), np.nan)
            axis.imshow(np.ma.masked_where(~(heat > 0), heat), cmap=MAP, alpha=_ALPHA, vmin=0, vmax=1)
        axis.set_title(wrapped(row.caption, _across(rows)), fontsize=8, loc="left", pad=2)
        centres = [frame * (width + _GAP) + (width - 1) / 2 for frame in range(count)]
        axis.set_xticks(centres, row.words, fontsize=7)
        axis.set_yticks([])
        axis.tick_params(length=0, pad=1)
        axis.spines[:].set_visible(False)
    heated = [axis for axis, row in zip(axes, rows, strict=True) if row.heat is not None]
    if heated:
        bar = part.colorbar(
            ScalarMappable(matplotlib.colors.Normalize(0, 1), MAP),
            ax=heated,
            alpha=_ALPHA,
            fraction=0.02,
            aspect=30,
            pad=0.01,
        )
        bar.ax.set_facecolor("0.5")  # as over grey frames
        bar.set_label("attention, relative to the clip's largest", fontsize=7)
        bar.ax.tick_params(labelsize=7)


def _side_by_side(frames: np.ndarray, between: float) -> np.ndarray:
    """Join frames [T,H,W,...] into one picture [H, T*W + gaps, ...]."""
    gap = np.full_like(frames[0, :, :_GAP], between)
    return np.concatenate([part for frame in frames for part in (gap, frame)][1:], axis=1)
