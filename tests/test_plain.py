"""Users' text stays text: on terminals, in CSVs, tables and pictures."""

import csv
import warnings

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from taf_fast.cli.robustness import print_summaries
from taf_fast.files import read_csv, write_csv
from taf_fast.plain import printable
from taf_fast.report.curves import curves_figure
from taf_fast.report.figures import drawable, save
from taf_fast.report.html import Section, page, sentence

NAMES = ["x[/]", "[red]x", ":smile:", "$x", "$\\frac$", "=1+1", "-x", "'=x", "@x", "\tx", "{x}", "x\x1b[31m"]


def test_control_characters_are_shown_and_not_obeyed():
    assert printable("a\x1b[31mb\x07\r\n\tü\udcff") == "a\\x1b[31mb\\x07\\r\n\tü\\udcff"


@pytest.mark.parametrize("name", NAMES)
def test_no_cell_is_a_formula_and_every_cell_comes_back(tmp_path, name):
    path = tmp_path / "x.csv"
    write_csv(path, [{"name": name, "number": -1.5, "text": "-1.5e-3"}])
    with path.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["name"][0] not in "=+-@\t\r" and row["number"] == "-1.5" and row["text"] == "-1.5e-3"
    assert read_csv(path) == [{"name": name, "number": "-1.5", "text": "-1.5e-3"}]


@pytest.mark.parametrize("name", NAMES)
def test_a_table_shows_a_name_as_it_is(capsys, name):
    print_summaries({name: {"clean": 0.5}})
    printed = capsys.readouterr().out
    assert (
        printable(name).strip() in printed.replace("\n", "") and "50.0" in printed and "\x1b" not in printed
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_picture_shows_a_name_as_it_is(tmp_path, name):
    row = {"run": name, "epoch": 1, "step": 1, "train_loss": 1.0, "val_loss": 1.0, "val_top1": 0.5}
    figure = curves_figure([row])
    save(figure, [row], tmp_path / "x.png")
    FigureCanvasAgg(figure).draw()
    (text,) = figure.legends[0].get_texts()
    assert text.get_text() == drawable(name) and not text.get_parse_math()


@pytest.mark.slow
def test_no_text_is_more_than_a_picture_or_a_file_can_hold(tmp_path):
    """Control characters, and bytes of names of files that are no text."""
    name = "a\tb\x01c\x1b\udcff"
    row = {"run": name, "epoch": 1, "step": 1, "train_loss": 1.0, "val_loss": 1.0, "val_top1": 0.5}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(curves_figure([row]), [row], tmp_path / "x.png")
    assert read_csv(tmp_path / "x.csv")[0]["run"] == "a\tb\x01c\x1b\\udcff"
    content = page(name, [Section(name, sentence(name))]).encode("utf-8")
    assert b"\x1b" not in content and b"\x01" not in content and b"\\udcff" in content
