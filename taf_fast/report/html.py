"""The parts of a page that is one file, without requests or scripts. All take plain text and escape it."""

import base64
import dataclasses
import io
import re
import warnings
from collections.abc import Callable, Iterable
from html import escape as _escape
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from taf_fast.plain import printable

# Formats for an <img>, which runs no script and makes no request.
_TYPES = {"svg": "image/svg+xml", "jpg": "image/jpeg"}
# The same figure gives the same bytes, and text stays text in SVG, for the fonts of the reader.
# Every text names its fonts: a short list makes small files.
_CONTEXTS: dict[str, dict] = {
    "svg": {"svg.hashsalt": "taf_fast", "svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans"]},
    "jpg": {},
}
_SAVING: dict[str, dict] = {
    "svg": {"metadata": {"Date": None}},
    "jpg": {"dpi": 110, "pil_kwargs": {"quality": 85}},
}


def escape(text: str) -> str:
    """Text for HTML, where control characters may not be and UTF-8 has no half of a pair."""
    return _escape(printable(text))


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading, and the HTML below it."""

    title: str
    content: str


def sentence(text: str) -> str:
    return f"<p>{escape(text)}</p>\n"


def heading(text: str) -> str:
    """A heading one level below that of a section."""
    return f"<h3>{escape(text)}</h3>\n"


def details(summary: str, content: str) -> str:
    """Content that is folded up until the reader opens it; unfolded in print."""
    return f"<details><summary>{escape(summary)}</summary>\n{content}</details>\n"


def table(
    caption: str,
    header: list[str],
    rows: list[list[str]],
    note: str = "",
    groups: list[tuple[str, int]] | None = None,
) -> str:
    """A table that scrolls sideways in a box of its own; empty without rows.

    Args:
        rows: as many cells each as ``header``; the first cell names the row.
        note: a sentence after the caption.
        groups: a line above the header, as names and the number of columns that each spans.
    """
    if not rows:
        return ""
    sides = [_side(column) for column in zip(*rows, strict=True)]
    head = "" if groups is None else _row(_cell("th", name, f' colspan="{n}"') for name, n in groups)
    head += _row(_cell("th", name, f' scope="col"{side}') for name, side in zip(header, sides, strict=True))
    body = ""
    for first, *others in rows:
        cells = (_cell("td", cell, side) for cell, side in zip(others, sides[1:], strict=True))
        # A box, unlike a cell, can be as wide as its text but no wider than CSS allows.
        name = f'<th scope="row"{sides[0]}><div>{escape(first)}</div></th>'
        body += _row([name, *cells])
    # The caption is outside the box, where it stays in place and wraps.
    return (
        f"<figure>\n<figcaption><b>{escape(caption)}</b> {escape(note)}</figcaption>\n"
        + _wide(caption, f"<table>\n<thead>\n{head}</thead>\n<tbody>\n{body}</tbody>\n</table>")
        + "</figure>\n"
    )


def _side(column: tuple[str, ...]) -> str:
    numbers = all(re.match(r"$|[+-]?\d", cell) for cell in column) and any(column)
    return "" if numbers else ' class="text"'


def _row(cells: Iterable[str]) -> str:
    return f"<tr>{''.join(cells)}</tr>\n"


def _cell(tag: str, text: str, attributes: str) -> str:
    return f"<{tag}{attributes}>{escape(text)}</{tag}>"


def _wide(name: str, content: str, kind: str = "wide") -> str:
    # The Tab key reaches the box, so that arrow keys can scroll it.
    return f'<div class="{kind}" role="group" tabindex="0" aria-label="{escape(name)}">{content}</div>\n'


def picture(draw: Callable[[], Figure], alt: str, kind: str = "svg") -> str:
    """A figure, embedded in the page.

    Args:
        draw: makes the figure.
        alt: a description for readers who cannot see it.
        kind: "svg", or "jpg" for photographs.
    """
    file = io.BytesIO()
    with matplotlib.rc_context(_CONTEXTS[kind] | {"text.parse_math": False}), warnings.catch_warnings():
        # The reader's fonts have characters that those of this machine lack.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = draw()
        figure.savefig(file, format=kind, **_SAVING[kind])
    content = base64.b64encode(file.getvalue()).decode()
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    source = f'src="data:{_TYPES[kind]};base64,{content}" width="{width}" height="{height}"'
    return _wide(alt, f'<img {source} alt="{escape(alt)}">', "wide picture")


def page(title: str, sections: list[Section]) -> str:
    """The whole HTML document."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    links = "".join(
        f'<li><a href="#part{number}">{escape(section.title)}</a></li>\n'
        for number, section in enumerate(sections, 1)
    )
    parts = "".join(
        f'<section id="part{number}">\n<h2>{escape(section.title)}</h2>\n{section.content}</section>\n'
        for number, section in enumerate(sections, 1)
    )
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
<nav aria-label="Parts"><ul>
{links}</ul></nav>
{parts}</main>
</body>
</html>
"""
