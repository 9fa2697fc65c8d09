"""A picture and its numbers lie beside each other, and strips show the pixels they were given."""

import csv

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image

from taf_fast.report.figures import draw_strips, save


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
    figure = Figure()
    draw_strips(figure, [("plain", frames, None, []), ("hot", frames, heat, list("abc"[:count]))], "title")

    plain, hot = figure.axes
    assert [axis.get_title(loc="left") for axis in (plain, hot)] == ["plain", "hot"]
    assert [label.get_text() for label in hot.get_xticklabels()] == list("abc"[:count])
    assert not plain.get_xticklabels() and figure.get_suptitle() == "title"
    (shown,), (below, above) = plain.images, hot.images
    assert np.array_equal(shown.get_array(), below.get_array())
    large = F.interpolate(heat[None], size=(8, 10), mode="bilinear")[0].numpy()
    for frame, centre in enumerate(hot.get_xticks()):
        left = round(centre - 4.5)
        assert left == frame * 12
        assert np.array_equal(shown.get_array()[:, left : left + 10], frames[frame].numpy())
        np.testing.assert_allclose(above.get_array()[:, left : left + 10], large[frame], rtol=1e-5)
        # White, and no heat, up to the next frame.
        assert (shown.get_array()[:, left + 10 : left + 12] == 255).all()
        assert np.ma.getmaskarray(above.get_array())[:, left + 10 : left + 12].all()
    assert (above.norm.vmin, above.norm.vmax) == (0, 1)
