"""A picture and its CSV are written together, and strips show the given pixels."""

import csv
import warnings

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from PIL import Image

from taf_fast.report.figures import (
    MAP,
    Row,
    draw_strips,
    drawable,
    plain_text,
    save,
    strip_size,
    use_fonts,
)


def test_a_picture_lies_beside_its_numbers(tmp_path):
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([1, 2])
    save(figure, [{"name": "a, b", "value": 0.1}, {"name": "c", "value": 2}], tmp_path / "some.picture.png")
    assert {path.name for path in tmp_path.iterdir()} == {"some.picture.png", "some.picture.csv"}
    with Image.open(tmp_path / "some.picture.png") as image:
        image.load()
        assert image.format == "PNG" and image.size == (220, 110)
    with (tmp_path / "some.picture.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["name", "value"], ["a, b", "0.1"], ["c", "2"]]


def test_a_picture_that_cannot_be_drawn_leaves_the_one_before(tmp_path):
    save(Figure(), [], tmp_path / "picture.png")
    before = (tmp_path / "picture.png").read_bytes()
    broken = Figure()
    broken.savefig = lambda path, **_: path.write_bytes(b"half") and 1 / 0
    with pytest.raises(ZeroDivisionError):
        save(broken, [], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes() == before


@pytest.mark.parametrize("count", [1, 3])
def test_strips_are_the_frames_and_the_heat_over_them(generator, count):
    frames = torch.randint(256, (count, 8, 10, 3), dtype=torch.uint8, generator=generator)
    heat = torch.rand(count, 2, 3, generator=generator)
    heat[0] = 0
    figure, words = Figure(), list("abc"[:count])
    draw_strips(figure, [Row("plain", frames, words), Row("hot", frames, words, heat)], "title")

    plain, hot, bar = figure.axes
    assert [axis.get_title(loc="left") for axis in (plain, hot)] == ["plain", "hot"]
    for axis in (plain, hot):
        assert [label.get_text() for label in axis.get_xticklabels()] == words
    assert figure.get_suptitle() == "title"
    (shown,), (below, above) = plain.images, hot.images
    np.testing.assert_allclose(below.get_array(), shown.get_array() @ [0.299, 0.587, 0.114])
    large = F.interpolate(heat[None], size=(8, 10), mode="bilinear")[0].numpy()
    for frame, centre in enumerate(hot.get_xticks()):
        left = round(centre - 4.5)
        assert left == frame * 12
        assert np.array_equal(shown.get_array()[:, left : left + 10], frames[frame].numpy())
        laid_over = above.get_array()[:, left : left + 10]
        np.testing.assert_allclose(laid_over, np.ma.masked_equal(large[frame], 0), rtol=1e-5)
        assert np.ma.getmaskarray(laid_over).all() == (frame == 0), "no attention is no colour"
        # White, and no heat, up to the next frame.
        assert (shown.get_array()[:, left + 10 : left + 12] == 255).all()
        assert np.ma.getmaskarray(above.get_array())[:, left + 10 : left + 12].all()
    assert (above.norm.vmin, above.norm.vmax) == (0, 1)
    # The bar is of the map and of as much of it.
    assert bar.get_ylim() == (0, 1) and "attention" in bar.get_ylabel()
    assert above.get_cmap().name == MAP and above.get_alpha() == bar.collections[-1].get_alpha() == 0.6


def lightness(colours: np.ndarray) -> np.ndarray:
    """L* of CIELAB of sRGB colours [n,3] in [0,1]."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(y > 0.008856, 116 * np.cbrt(y) - 16, 903.3 * y)


def test_the_map_grows_lighter_evenly():
    """So do its colours to colour-blind readers, whose lightness is nearly the same."""
    steps = np.diff(lightness(matplotlib.colormaps[MAP](np.linspace(0, 1, 33))[:, :3]))
    assert (steps > 0).all() and steps.max() < 2 * steps.min()


@pytest.fixture
def chinese(tmp_path, monkeypatch):
    """An installed font that has no characters but these two."""
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "a", "b"])
    builder.setupCharacterMap({ord("\u4f60"): "a", ord("\u597d"): "b"})
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for point in ((100, 700), (900, 700), (900, 0)):
        pen.lineTo(point)
    pen.closePath()
    shape = pen.glyph()
    builder.setupGlyf({name: shape for name in (".notdef", "a", "b")})
    builder.setupHorizontalMetrics({name: (1000, 100) for name in (".notdef", "a", "b")})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Some Chinese", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, usWeightClass=400)
    builder.setupPost()
    builder.save(tmp_path / "chinese.ttf")
    monkeypatch.setattr(fontManager, "ttflist", list(fontManager.ttflist))
    fontManager.addfont(tmp_path / "chinese.ttf")
    yield "Some Chinese"
    fontManager._findfont_cached.cache_clear()


@plain_text
def drawn_with_fonts(text: str) -> tuple[str, list[str]]:
    use_fonts([text])
    return drawable(text), matplotlib.rcParams["font.family"]


def test_a_font_that_has_the_characters_is_used(chinese):
    assert drawn_with_fonts("Moving \u4f60\u597d") == ("Moving \u4f60\u597d", ["sans-serif", chinese])
    assert drawn_with_fonts("Moving") == ("Moving", ["sans-serif"])
    assert matplotlib.rcParams["font.family"] == ["sans-serif"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\u79fb\u52a8", r"\u79fb\u52a8"),
        ("\uff21\uff11", "A1"),  # wide letters of a Chinese keyboard
        ("Z\u00fcge\t\u041f\u0440\u0438\u0432\u0435\u0442", "Z\u00fcge \u041f\u0440\u0438\u0432\u0435\u0442"),
        ("\U0001f9ff", r"\U0001f9ff"),
        ("$x_1$\x1b[31m", r"$x_1$\x1b[31m"),
    ],
)
def test_no_name_is_drawn_as_boxes(monkeypatch, name, shown):
    own = [font for font in fontManager.ttflist if font.name == "DejaVu Sans"]
    monkeypatch.setattr(fontManager, "ttflist", own)
    text, _ = drawn_with_fonts(name)
    assert text == shown
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of every character that it lacks
        figure = Figure()
        figure.text(0.5, 0.5, text, parse_math=False)
        FigureCanvasAgg(figure).draw()


def test_long_captions_stay_within_their_strip():
    frames = torch.zeros(3, 8, 8, 3, dtype=torch.uint8)
    rows = [Row("Putting one thing on another thing and moving both of them away " * 4, frames, list("abc"))]
    figure = Figure(figsize=strip_size(rows, "title"), layout="constrained")
    draw_strips(figure, rows, "title")
    FigureCanvasAgg(figure).draw()
    axis = figure.axes[0]
    box = axis._left_title.get_window_extent(figure.canvas.get_renderer())
    assert box.x1 <= figure.bbox.x1 and axis.bbox.height > 50
