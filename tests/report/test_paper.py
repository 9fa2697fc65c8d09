"""The paper's tables: what they hold, and which runs belong to which cell."""

import dataclasses
from pathlib import Path
from random import Random
from statistics import fmean

import pytest
import yaml
from report.page_parser import Page
from report.run_files import read_csv, read_json, write_json, write_run

from taf_fast import corruptions, models
from taf_fast.report import paper
from taf_fast.report.page import write_page
from taf_fast.report.paper import paper_tables
from taf_fast.report.record import read_run
from taf_fast.run.config import FinetuneConfig
from taf_fast.run.recipes import NAMES, read_recipe
from taf_fast.sweep.plan import read_sweep

CONTENT = yaml.safe_load(Path(paper.__file__).with_name("paper.yaml").read_text(encoding="utf-8"))
CLASSES = {"ssv1": 174, "ssv2": 174, "diving48": 48}
SSV1 = [f"class {n}" for n in range(174)]


@pytest.fixture
def random(seed):
    return Random(seed)


@pytest.fixture
def fill(tmp_path, random):
    """The cells that runs of these configurations fill: (table, labels, column) -> the values."""

    def run(*configs: dict, classes: int | None = None) -> dict:
        runs = []
        for config in configs:
            folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
            names = [f"class {n}" for n in range(classes or CLASSES.get(config.get("dataset"), 8))]
            runs.append(read_run(write_run(folder, random, names, **config), folder.name))
        return {
            (table.title.split(":")[0], tuple(labels), column): cell
            for table in paper_tables(runs)
            for labels, cells in zip(table.labels, table.ours, strict=True)
            for column, cell in zip(table.columns, cells, strict=True)
            if cell
        }

    return run


def test_every_cell_can_be_measured():
    fields = {field.name for field in dataclasses.fields(FinetuneConfig)}
    shown = {table.title: table for table in paper_tables([])}
    assert len(shown) == len(CONTENT["tables"]) == 12
    for table in CONTENT["tables"]:
        for part in (table, *table["rows"], *table["columns"]):
            where = part.get("where", {}) | part.get("minus", {})
            assert set(where) <= fields
            assert where.get("model", models.NAMES[0]) in models.NAMES
        for column in table["columns"]:
            assert column["measure"] in ("top1", "top5", "class", "clean", *corruptions.NAMES)
        for row in table["rows"]:
            assert len(row["paper"]) == len(table["columns"]) and len(row["labels"]) == len(table["keys"])
        assert all(cell == [] for cells in shown[table["title"]].ours for cell in cells)


def test_the_numbers_of_the_paper():
    """Facts of the paper that were noted apart: sums over its tables, and what its text says of them."""
    shown = {table.title.split(":")[0]: table for table in paper_tables([])}
    numbers = {
        (name, tuple(labels), column): number
        for name, table in shown.items()
        for labels, values in zip(table.labels, table.paper, strict=True)
        for column, number in zip(table.columns, values, strict=True)
    }
    headline = {"TAF top-1": 46.9, "TAF top-5": 75.0, "base top-1": 45.6, "base top-5": 74.6}
    assert headline.items() <= {c: n for (t, r, c), n in numbers.items() if r == ("SSV1", "TSM", "8")}.items()
    # Section 4.2 and Appendix F.
    gains = {("SSV1", "TAM", 8): 0.4, ("SSV1", "TPN", 8): 1.1, ("SSV1", "GST", 8): 1.0}
    gains |= {("SSV1", "TSM", 16): 0.7, ("SSV2", "TSM", 16): 0.9, ("Diving48", "GST", 8): 0.8}
    for (*labels, frames), gain in gains.items():
        row = ("Table 1", (*labels, str(frames)))
        assert numbers[(*row, "TAF top-1")] - numbers[(*row, "base top-1")] == pytest.approx(gain)
    # The best row of every ablation is the headline.
    for name, table in shown.items():
        if name in ("Table 2a", "Table 2b", "Table 2c", "Table 4", "Table 6a", "Table 6b"):
            assert max(values[0] for values in table.paper) == 46.9 and table.paper[0][0] == 45.6, name
    sums = {"Table 1": 4314.3, "Table 3 (top-1)": 651.3, "Table 3 (top-5)": 1339.3}
    sums |= {"Table 7 (top-1)": 370.8, "Table 7 (top-5)": 845.8, "Table 5": 270.7}
    sums |= {"Table 2a": 183.1, "Table 2b": 606.6, "Table 2c": 606.7, "Table 4": 317.2}
    sums |= {"Table 6a": 485.0, "Table 6b": 485.0}
    for name, expected in sums.items():
        assert sum(map(sum, shown[name].paper)) == pytest.approx(expected), name


def test_table_5():
    table = paper.table_5()
    places, points = zip(*table.values(), strict=True)
    assert len(table) == 35 and list(places) == sorted(places) and max(places) <= 174
    assert list(points) == sorted(points, reverse=True)
    assert (sum(p > 0 for p in points), sum(p >= 10 for p in points)) == (26, 11)  # Section 4.2
    rows = [
        {"class": "Poking something so that it spins around", "place": 1},
        {"class": "another", "place": 2},
        {"class": "Removing something, revealing something behind", "place": 3},
    ]
    for row, points, half in zip(rows, (12.5, 0.0, -50.0), (4.25, 1.0, None), strict=True):
        row |= {"difference_points": points, "difference_points_ci95": half}
    columns = [list(column.cells) for column in paper.beside_table_5(rows).columns]
    shown = [[str(cell) for cell in row] for row in zip(*columns, strict=True)]
    assert shown == [
        ["1", "2", rows[0]["class"], "+12.5 ± 4.2", "+25.0"],
        ["3", "37", rows[2]["class"], "-50.0", "+7.8"],
    ]


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("advprop")])
def test_every_recipe_has_its_row_in_table_1(fill, name):
    values = read_recipe(name)
    filled = fill(values)
    rows = {labels for table, labels, _ in filled if table == "Table 1"}
    (row,) = rows
    frames = {"ssv1": "SSV1", "ssv2": "SSV2", "diving48": "Diving48"}[values["dataset"]]
    family = {"gst_large": "GST-Large"}.get(values["model"].removesuffix("_resnet50"))
    family = family or values["model"].split("_")[0].upper()
    assert row == (frames, family, str(values["num_segments"]))
    assert [column for table, _, column in filled if table == "Table 1"] == ["TAF top-1", "TAF top-5"]
    plain = fill(values | {"augment": "none", "alpha": 0.1, "composition": "correct"})
    assert [key for key in plain if key[0] == "Table 1"] == [
        ("Table 1", row, "base top-1"),
        ("Table 1", row, "base top-5"),
    ]


AUGMENTATIONS = {"none": "base", "ce": "CE-based", "ta": "TAF", "noise": "random noise", "mixup": "MixUp"}
AUGMENTATIONS |= {"cutmix": "CutMix", "framemixup": "FrameMixUp", "cubemixup": "CubeMixUp"}
CLIPS = {"all": "+C, +W", "correct": "+C, -W", "wrong": "-C, +W"}
# The row of a run, by table.
ROWS = {
    "2a": lambda config: (AUGMENTATIONS[config.augment],),
    "2b": lambda config: (str(config.alpha),),
    "2c": lambda config: (f"{255 * config.epsilon:.0f}", f"{255 * config.step_size:.0f}", str(config.steps)),
    "4": lambda config: (AUGMENTATIONS[config.augment],),
    "6a": lambda config: (str(config.num_frames),),
    "6b": lambda config: (CLIPS[config.composition],),
}


@pytest.mark.parametrize("name", ROWS)
def test_the_paper_s_sweeps_fill_its_tables(fill, tmp_path, name):
    checkpoint = write_run(tmp_path / "start", Random(0), SSV1) / "model.safetensors"
    given = dict(data="data", out=str(tmp_path / "sweep"), checkpoint=str(checkpoint))
    found = set()
    for run in read_sweep(f"table{name}", given).runs:
        if run.config.seed == 0:
            config = {key: value for key, value in vars(run.config).items() if key not in ("out", "data")}
            (row,) = {labels for table, labels, _ in fill(config) if table == f"Table {name}"}
            assert row == ROWS[name](run.config)
            found.add(row)
    (table,) = (table for table in CONTENT["tables"] if table["title"].startswith(f"Table {name}:"))
    # No sweep has AdvProp's row, which is not fine-tuning, and most have no run without augmentation.
    rows = {tuple(map(str, row["labels"])) for row in table["rows"] if row["labels"][0] != "AdvProp"}
    assert found <= rows and {row[0] for row in rows - found} <= {"base"}


def test_advprop_has_a_row(fill):
    assert ("Table 2a", ("AdvProp",), "top-1") in fill(read_recipe("advprop_tsm_r50_8f_ssv1"))


HEADLINE = read_recipe("tsm_r50_8f_ssv1")
CELL = ("Table 1", ("SSV1", "TSM", "8"), "TAF top-1")


def test_a_cell_is_the_mean_over_seeds(fill, tmp_path):
    filled = fill(*({**HEADLINE, "seed": seed, "threads": seed + 1} for seed in range(3)))
    scores = [read_json(tmp_path / f"run{n}" / "result.json")["evaluation"] for n in range(3)]
    for measure, column in (("top1", "TAF top-1"), ("top5", "TAF top-5")):
        mean = 100 * fmean(score[measure] for score in scores)
        (value,) = filled[(*CELL[:2], column)]
        assert (value.mean, value.runs) == (pytest.approx(mean), 3)


def test_other_settings_are_values_of_their_own(fill, tmp_path):
    runs = [{**HEADLINE, "lr": lr, "seed": seed} for lr, seed in ((1e-4, 0), (1e-3, 0), (1e-4, 1))]
    cell = fill(*runs)[CELL]
    top1 = [100 * read_json(tmp_path / f"run{n}" / "result.json")["evaluation"]["top1"] for n in range(3)]
    expected = [(pytest.approx((top1[0] + top1[2]) / 2), 2), (pytest.approx(top1[1]), 1)]
    assert [(value.mean, value.runs) for value in cell] == expected
    # All frames can be said in two ways.
    (value,) = fill(HEADLINE, {**HEADLINE, "num_frames": 8, "seed": 5})[CELL]
    assert value.runs == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"dataset": None},
        {"alpha": 0.5},
        {"epsilon": 60 / 255},
        {"step_size": 16 / 255},
        {"steps": 3},
        {"num_frames": 4},
        {"composition": "all"},
        {"augment": "noise"},
        {"model": "tsm_resnet18"},
    ],
)
def test_other_runs_are_not_in_the_cell(fill, change):
    assert CELL in fill(HEADLINE)
    assert CELL not in fill({**HEADLINE, **change})


def test_other_data_fill_nothing(fill):
    """The synthetic data set has a real one's format, and a configuration names only the format."""
    for dataset in ("ssv1", "ssv2", "diving48"):
        assert fill({**HEADLINE, "dataset": dataset}, classes=8) == {}
    assert fill({**HEADLINE, "dataset": "diving48"}, classes=174) == {}


def test_an_unfinished_run_fills_nothing(tmp_path, random):
    folder = write_run(tmp_path / "run", random, SSV1, **HEADLINE)
    (folder / "result.json").unlink()
    assert not any(cell for t in paper_tables([read_run(folder, "")]) for cells in t.ours for cell in cells)


def test_corruptions(fill, tmp_path):
    filled = fill(HEADLINE, read_recipe("tpn_r50_8f_ssv1") | {"augment": "none"})
    for number, row in ((0, ("TSM", "TAF")), (1, ("TPN", "base"))):
        rows = read_csv(tmp_path / f"run{number}" / "robustness.csv")
        for column, name in (("Gaussian noise", "gaussian_noise"), ("snow", "snow")):
            for score in ("top-1", "top-5"):
                values = [line for line in rows if line["corruption"] == name]
                mean = 100 * fmean(float(line[score.replace("-", "")]) for line in values)
                assert filled[f"Table 3 ({score})", row, column][0].mean == pytest.approx(mean)
        assert ("Table 3 (top-1)", row, "zoom blur") not in filled
    # A robustness file of several checkpoints; this run's is the second.
    own = (tmp_path / "run0" / "robustness.csv").read_text().splitlines()[1:]
    both = (tmp_path / "run1" / "robustness.csv").read_text() + "\n".join(own) + "\n"
    (tmp_path / "run0" / "robustness.csv").write_text(both)
    again = read_run(tmp_path / "run0", "").corrupted()
    assert 100 * again["snow"] == pytest.approx(filled["Table 3 (top-1)", ("TSM", "TAF"), "snow"][0].mean)


def test_classes_of_table_5(fill, tmp_path, monkeypatch):
    content = yaml.safe_load(yaml.safe_dump(CONTENT))
    (table,) = (table for table in content["tables"] if table["title"].startswith("Table 5"))
    table["rows"] = [{"labels": [name, 7], "paper": [1.0]} for name in ("class 3", "class 999")]
    monkeypatch.setattr(paper, "_content", lambda: content)
    own = "Moving something to the right and back again"
    assert paper.long_term_classes(("class 2", "class 3", own, "class 4")) == ["class 3", own]
    seeds = [{**HEADLINE, "seed": seed} for seed in (3, 5)]
    filled = fill(*seeds, *(values | {"augment": "none"} for values in reversed(seeds)))
    share = [
        100 * fmean(row["place"] == "0" for row in read_csv(path) if row["label"] == "3")
        for path in (tmp_path / f"run{n}" / "predictions.csv" for n in range(4))
    ]
    assert {key for key in filled if key[0] == "Table 5"} == {("Table 5", ("class 3", "7"), "points")}
    (cell,) = filled["Table 5", ("class 3", "7"), "points"]
    # Pairs of one seed, and 12.7062 is the 97.5 % quantile of Student's t with 1 degree of freedom.
    pairs = share[0] - share[3], share[1] - share[2]
    assert cell.mean == pytest.approx(fmean(pairs)) and cell.is_difference and cell.runs == 2
    assert cell.half == pytest.approx(12.7062 * abs(pairs[0] - pairs[1]) / 2, rel=1e-5)
    (alone,) = fill(seeds[0], {**HEADLINE, "augment": "none", "seed": 4})[
        "Table 5", ("class 3", "7"), "points"
    ]
    assert alone.half is None and alone.runs == 1


@pytest.mark.slow
def test_on_the_page(tmp_path, random):
    sweep = tmp_path / "sweep"
    folders = [write_run(sweep / f"s{n}", random, SSV1, **HEADLINE, seed=n) for n in range(2)]
    for folder, top1 in zip(folders, (0.44, 0.46), strict=True):
        result = read_json(folder / "result.json")
        result["evaluation"]["top1"] = top1
        write_json(folder / "result.json", result)
    write_page(tmp_path / "report.html", folders)
    tables = Page((tmp_path / "report.html").read_text(encoding="utf-8")).tables
    header, rows = tables["Table 1: with and without TAF"]
    assert header == ["data", "model", "frames", *["paper", "ours"] * 4]
    assert rows[0][:4] == ["SSV1", "TSM", "8", "45.6"] and rows[0][4:7] == ["", "74.6", ""]
    assert rows[0][7:9] == ["46.9", "45.0 (-1.9, 2 runs)"]
    top5 = rows[0][10]
    assert tables["Table 6b: which clips are attacked"][1] == [
        ["base", "45.6", "", "74.6", ""],
        ["+C, +W", "46.6", "", "74.8", ""],
        ["+C, -W", "46.6", "", "74.9", ""],
        ["-C, +W", "46.9", "45.0 (-1.9, 2 runs)", "75.0", top5],
    ]
    # A sweep, together with one of its own runs.
    (sweep / "table.csv").write_text("")
    write_page(tmp_path / "report.html", [sweep, folders[0]])
    tables = Page((tmp_path / "report.html").read_text(encoding="utf-8")).tables
    assert tables["Table 1: with and without TAF"][1][0][7:9] == ["46.9", "45.0 (-1.9, 2 runs)"]
