"""The page of a report: its form, and its numbers against the files they are from."""

import ast
import base64
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random
from statistics import fmean

import pytest
import scipy.stats
from report.page_parser import Page
from report.run_files import (
    CORRUPTIONS,
    SEVERITIES,
    read_csv,
    read_json,
    report_in_a_process,
    write_csv,
    write_json,
    write_run,
)

from taf_fast.data import DataError
from taf_fast.errors import RunError
from taf_fast.models import CheckpointError
from taf_fast.report.page import write_page

CLASSES = [f"Doing {n}" for n in range(7)]


@pytest.fixture
def random(seed):
    return Random(seed)


@pytest.fixture
def folders(tmp_path, random):
    """Two runs of the same clips."""
    first = write_run(tmp_path / "plain", random, CLASSES, augment="none")
    return [first, write_run(tmp_path / "taf", random, CLASSES, alpha=0.25, seed=3)]


def page_of(tmp_path: Path, folders: list[Path]) -> Page:
    write_page(tmp_path / "report.html", folders)
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def require_sound(page: Page) -> None:
    """The page is well-formed and contains nothing that would run or be fetched."""
    assert page.declarations == ["DOCTYPE html"]
    tags = {tag for tag, _ in page.attributes}
    assert not tags & {"script", "link", "iframe", "object", "embed", "form", "base", "svg", "source"}
    ids = [attributes["id"] for _, attributes in page.attributes if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for tag, attributes in page.attributes:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "data", "action", "poster", "style", "background"):
            value = attributes.get(name, "#")
            assert value[0] == "#" or (tag, name, value[:11]) == ("img", "src", "data:image/"), (tag, name)
            if name == "href" and name in attributes:
                assert value[1:] in ids
        if tag == "img":
            assert attributes["alt"] and attributes["width"].isdigit() and attributes["height"].isdigit()
    assert "url(" not in page.styles and "@import" not in page.styles
    metas = [attributes for tag, attributes in page.attributes if tag == "meta"]
    assert {"charset": "utf-8"} in metas
    assert any(meta.get("name") == "viewport" and "width=device-width" in meta["content"] for meta in metas)
    assert ("html", {"lang": "en"}) in page.attributes
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False)), (
        "a level is left out"
    )


def column(page: Page, caption: str, name: str) -> list[str]:
    header, rows = page.tables[caption]
    return [row[header.index(name)] for row in rows]


def test_numbers_are_those_of_the_files(tmp_path, folders):
    page = page_of(tmp_path, folders)
    require_sound(page)
    results = [read_json(folder / "result.json") for folder in folders]
    scores = [result["evaluation"] for result in results]

    summary = "Scores on the validation clips"
    described = [str(Path("nowhere").absolute()), "tsm_resnet50", "8", "224 x 224", "3", "random weights"]
    assert page.tables["What was run"] == (
        ["run", "augmentation", "data", "model", "frames", "size", "epochs", "started from"],
        [
            ["plain", "none (plain fine-tuning)", *described],
            ["taf", "temporal augmentation (TAF)", *described],
        ],
    )
    assert list(page.tables)[:2] == ["What was run", summary]
    assert column(page, summary, "run") == ["plain", "taf"]
    assert column(page, summary, "top-1 %") == [f"{100 * s['top1']:.2f}" for s in scores]
    assert column(page, summary, "top-5 %") == [f"{100 * s['top5']:.2f}" for s in scores]
    assert column(page, summary, "loss") == [f"{s['loss']:.4f}" for s in scores]
    assert column(page, summary, "attacked %") == [f"{100 * r['attacked_share']:.2f}" for r in results]
    assert column(page, summary, "s / step") == [f"{r['seconds_per_step']:.3f}" for r in results]
    predictions = [read_csv(folder / "predictions.csv") for folder in folders]
    places = [{row["id"]: row["place"] == "0" for row in rows} for rows in predictions]
    changes = [100 * (places[1][id] - places[0][id]) for id in places[0]]
    assert column(page, summary, "difference") == ["", points(changes)]

    losses = [
        ["plain" if folder is folders[0] else "taf", str(epoch + 1)]
        + [f"{fmean(line['clean_loss'] for line in steps if 'clean_loss' in line):.4f}"]
        + [f"{steps[-1]['val_loss']:.4f}", f"{100 * steps[-1]['val_top1']:.2f}"]
        for folder in folders
        for lines in [[json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]]
        for epoch in range(3)
        for steps in [[line for line in lines if line["epoch"] == epoch]]
    ]
    assert page.tables["Losses of every epoch"][1] == losses

    right = [
        {
            name: [row["place"] == "0" for row in rows if row["label"] == str(n)]
            for n, name in enumerate(CLASSES)
        }
        for rows in (read_csv(folder / "predictions.csv") for folder in folders)
    ]
    header, rows = page.tables["Top-1 of every class"]
    assert header == ["class", "", "clips", "plain %", "taf %", "difference"]
    assert sorted(row[0] for row in rows) == sorted(CLASSES)
    for name, long_term, clips, *numbers in rows:
        before, after = (100 * fmean(of_run[name]) for of_run in right)
        changes = [100 * (new - old) for old, new in zip(*(of_run[name] for of_run in right), strict=True)]
        assert (long_term, clips) == ("", str(len(right[0][name])))
        assert numbers == [f"{before:.2f}", f"{after:.2f}", points(changes)]

    for folder, row in zip(folders, page.tables["Spread of attention over the frames"][1], strict=True):
        clips = read_csv(folder / "attention.csv")
        means = [fmean(float(clip[name]) for clip in clips) for name in ("entropy", "top_share")]
        without = sum(float(clip["entropy"]) == 1 for clip in clips)
        assert without > 0 and row == [folder.name, "60", str(without), *(f"{mean:.4f}" for mean in means)]

    header, rows = page.tables["Top-1 % on corrupted clips"]
    assert header == ["run", "clean", *(name.replace("_", " ") for name in CORRUPTIONS), "mean"]
    severe, shown = page.tables["Top-1 % by severity"]
    assert severe == ["corruption", "run", "0", *map(str, SEVERITIES)]
    for folder, row in zip(folders, rows, strict=True):
        top1 = {
            (line["corruption"], int(line["severity"])): 100 * float(line["top1"])
            for line in read_csv(folder / "robustness.csv")
        }
        means = [fmean(top1[name, severity] for severity in SEVERITIES) for name in CORRUPTIONS]
        assert row == [folder.name, *(f"{m:.2f}" for m in (top1["clean", 0], *means, fmean(means)))]
        for name in CORRUPTIONS:
            expected = [f"{top1[name, severity]:.2f}" for severity in SEVERITIES]
            assert [name.replace("_", " "), folder.name, "", *expected] in shown

    out = [str(folder) for folder in folders]
    different = [["out", *out], ["augment", "none", "ta"], ["alpha", "0.7", "0.25"], ["seed", "0", "3"]]
    assert page.tables["What the runs differ in"][1] == different
    everything = page.tables["Configuration"][1]
    assert ["epsilon", "0.25098", "0.25098"] in everything and ["clip_grad", "20", "20"] in everything
    assert ["lr_steps", "10", "10"] in everything and ["swap", "none", "none"] in everything
    assert [row for row in everything if row[1] != row[2]] == different
    assert page.tables["Versions"][1][0] == ["taf_fast", "0.1.0", "0.1.0"]
    bad = [[folder.name, "train", "77", "has 2 frames"] for folder in folders]
    assert page.tables["Clips that could not be used"][1] == bad


NASTY = '<script>alert("1")</script>'


def points(changes: list[float]) -> str:
    """The mean with half of its interval, or alone where nothing differs."""
    if len(set(changes)) == 1:
        return f"{fmean(changes):+.1f}"
    half = scipy.stats.t.interval(0.95, len(changes) - 1, 0, scipy.stats.sem(changes))[1]
    return f"{fmean(changes):+.1f} ± {half:.1f}"


def test_one_run_shows_its_own_classes(tmp_path, folders):
    page = page_of(tmp_path, folders[1:])
    require_sound(page)
    header, (scores,) = page.tables["Scores on the validation clips"]
    assert header == ["run", "top-1 %", "top-5 %", "loss", "attacked %", "s / step"] and all(scores)
    rows = read_csv(folders[1] / "predictions.csv")
    recalls = []
    for label, shown in enumerate(page.tables["Scores of every class"][1]):
        own = [row for row in rows if row["label"] == str(label)]
        taken = [row for row in rows if row["predicted"] == str(label)]
        right = [row for row in own if row["predicted"] == str(label)]
        recalls.append(len(right) / len(own))
        wrong = Counter(row["predicted"] for row in own if row not in right).most_common(1)
        mistaken = f"{CLASSES[int(wrong[0][0])]} ({wrong[0][1]})" if wrong else ""
        precision = f"{100 * len(right) / len(taken):.2f}" if taken else ""
        in_five = sum(int(row["place"]) < 5 for row in own) / len(own)
        top1, top5 = f"{100 * recalls[-1]:.2f}", f"{100 * in_five:.2f}"
        assert shown == [CLASSES[label], str(len(own)), top1, top5, precision, mistaken]
    assert f"Mean class accuracy of taf: {100 * fmean(recalls):.2f} %." in page.sentences
    alt = "Confusion matrix of taf: true classes in rows, predicted ones in columns"
    assert any(attributes.get("alt") == alt for tag, attributes in page.attributes if tag == "img")


def test_tables_of_the_paper_are_folded_where_no_run_fits(tmp_path, folders, random):
    write_page(tmp_path / "report.html", folders)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    part = text[text.index("<h2>The paper&#x27;s tables</h2>") :]
    assert part.index("<details>") < part.index("Table 1: ") < part.index("</details>")
    assert "No run here has the data and the settings of one of the paper" in part[: part.index("<details>")]
    classes = [f"class {n}" for n in range(48)]
    fits = dict(dataset="diving48", model="tsm_resnet50", augment="none")
    folders = [write_run(tmp_path / "diving48", random, classes, **fits)]
    write_page(tmp_path / "report.html", folders)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    part = text[text.index("<h2>The paper&#x27;s tables</h2>") :]
    assert part.index("Table 1: ") < part.index("<details>") < part.index("Table 2b: ")


def test_names_are_text(tmp_path, random):
    nasty = [f"{NASTY} & $x$ {n}" for n in range(3)]
    names = ["<script>a&b", "$\\frac$ \"quoted' <img src=x onerror=1>"]
    folders = [write_run(tmp_path / name, random, nasty) for name in names]
    write_json(folders[0] / "quarantine.json", {"train": {NASTY: NASTY}})
    write_json(folders[1] / "environment.json", {NASTY: NASTY})
    rows = read_csv(folders[0] / "robustness.csv")
    write_csv(folders[0] / "robustness.csv", [row | {"corruption": NASTY} for row in rows] + rows)
    (folders[0] / "attention.csv").unlink()
    page = page_of(tmp_path, folders)
    require_sound(page)
    assert f"{names[0]} has no attention.csv." in page.sentences
    assert column(page, "Scores on the validation clips", "run") == names
    assert sorted(column(page, "Top-1 of every class", "class")) == nasty
    assert page.tables["Clips that could not be used"][1] == [
        [names[0], "train", NASTY, NASTY],
        [names[1], "train", "77", "has 2 frames"],
    ]
    assert page.tables["Versions"][1][-1] == [NASTY, "", NASTY]
    # In the pictures too, because the SVG contains the names as text.
    svgs = [
        base64.b64decode(a["src"].partition(",")[2]) for t, a in page.attributes if "svg" in a.get("src", "")
    ]
    assert len(svgs) == 2 and all(b"<script" not in svg for svg in svgs)
    assert b"&lt;script&gt;a&amp;b" in svgs[0] and b"$\\frac$" in svgs[0]


MISSING = {
    "result.json": "taf is unfinished: it has no scores or no weights yet.",
    "predictions.csv": "Left out: taf has no predictions or no weights.",
    "model.safetensors": "Left out: taf has no predictions or no weights.",
    "robustness.csv": "taf has no robustness.csv.",
    "attention.csv": "taf has no attention.csv.",
    "environment.json": "taf has no environment.json.",
    "metrics.jsonl": "No curve of taf: {}/metrics.jsonl does not exist, expected the metrics of a run.",
    "quarantine.json": "taf left out no clip.",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MISSING)
def test_what_is_missing_is_left_out_with_a_sentence(tmp_path, folders, name):
    (folders[1] / name).unlink()
    page = page_of(tmp_path, folders)
    require_sound(page)
    assert MISSING[name].format(folders[1]) in page.sentences
    assert any(sentence.startswith("No pictures of attention: ") for sentence in page.sentences)
    taf = page.tables["Scores on the validation clips"][1][1]
    if name in ("result.json", "model.safetensors"):  # then the weights will be written again
        assert taf[0] == "taf (unfinished)" and taf[1:] == [""] * 6
        assert column(page, "What was run", "epochs") == ["3", "3 of 3"]
    else:
        assert taf[0] == "taf" and all(taf)


def test_a_run_that_has_just_begun(tmp_path, folders):
    for file in folders[0].iterdir():
        if file.name not in ("config.yaml", "environment.json"):
            file.unlink()
    page = page_of(tmp_path, folders[:1])
    require_sound(page)
    assert page.tables["Scores on the validation clips"][1][0] == ["plain (unfinished)", *[""] * 5]
    assert column(page, "What was run", "epochs") == ["0 of 3"]
    assert "No pictures of attention: no run has weights yet." in page.sentences
    assert "plain has no predictions or no weights." in page.sentences
    # Differences are to the first run that has scores.
    page = page_of(tmp_path, folders)
    assert column(page, "Scores on the validation clips", "difference") == ["", ""]


def test_runs_of_other_clips_or_classes_are_not_compared(tmp_path, folders, random):
    folders.append(write_run(tmp_path / "fewer", random, CLASSES, clips=50))
    folders.append(write_run(tmp_path / "other", random, CLASSES[::-1]))
    sentences = page_of(tmp_path, folders).sentences
    assert "Left out: the runs have different classes." in sentences
    assert [s for s in sentences if s.startswith("Left out: the predictions are not of the same clips: 10")]


def test_a_file_of_several_checkpoints(tmp_path, folders):
    rows = read_csv(folders[0] / "robustness.csv") + read_csv(folders[1] / "robustness.csv")
    write_csv(folders[0] / "robustness.csv", rows)
    names = [f"plain: {folder / 'model.safetensors'}" for folder in folders]
    page = page_of(tmp_path, folders)
    assert column(page, "Top-1 % on corrupted clips", "run") == [*names, "taf"]
    top1 = [row[1:] for row in page.tables["Top-1 % on corrupted clips"][1]]
    assert top1[1] == top1[2] != top1[0]


def test_runs_of_one_name_are_told_apart(tmp_path, random):
    folders = [write_run(tmp_path / name / "seed0", random, CLASSES) for name in ("a", "b")]
    page = page_of(tmp_path, folders)
    assert column(page, "Scores on the validation clips", "run") == ["a/seed0", "b/seed0"]


def test_thousands_of_bad_clips_are_counted(tmp_path, folders):
    write_json(folders[0] / "quarantine.json", {"train": {str(n): "gone" for n in range(5000)}})
    page = page_of(tmp_path, folders)
    assert len(page.tables["Clips that could not be used"][1]) == 51
    assert "plain left out 5000 clips; its quarantine.json has them all." in page.sentences
    assert (tmp_path / "report.html").stat().st_size < 500_000


def test_a_sweep_shows_its_table(tmp_path, folders):
    sweep = tmp_path / "sweep"
    rows = [
        {"arm": "plain", "p": "", "seeds": 2, "top1": 0.25, "top1_std": 0.0125, "top1_ci95": 0.03}
        | {"top1_difference_points": "", "top1_difference_points_ci95": "", "val_loss": ""},
        {"arm": "T<A>F", "p": "", "seeds": 3, "top1": 0.5, "top1_std": "", "top1_ci95": ""}
        | {"top1_difference_points": 25.04, "top1_difference_points_ci95": 3.06, "val_loss": 1.5},
    ]
    sweep.mkdir()
    for folder in folders:
        folder.rename(sweep / folder.name)
    write_csv(sweep / "table.csv", rows)
    page = page_of(tmp_path, [sweep])
    require_sound(page)
    assert [text for _, text in page.headings] == ["taf-fast: sweep", "Sweep sweep", "The paper's tables"]
    assert page.tables["Arms"] == (
        ["", "seeds", "top-1 %", "difference", "loss"],
        [["plain", "2", "25.0 ± 1.2", "", ""], ["T<A>F", "3", "50.0", "+25.0 ± 3.1", "1.500"]],
    )
    # With one of its runs beside it.
    page = page_of(tmp_path, [sweep / "taf", sweep])
    assert [text for _, text in page.headings][:2] == ["taf-fast: taf, sweep", "Runs and results"]
    (sweep / "table.csv").write_text("arm,top1,top1_std\nplain,high,0.1\n")
    with pytest.raises(RunError, match="table.csv is damaged"):
        write_page(tmp_path / "report.html", [sweep])
    (sweep / "table.csv").write_text("")
    assert "No run of the sweep has finished yet." in page_of(tmp_path, [sweep]).sentences


DAMAGED = {
    "config.yaml": ("epochs: many", RunError),
    "environment.json": ("{", RunError),
    "quarantine.json": ("[1]", RunError),
    "predictions.csv": ("id,label\n1,x\n", DataError),
    "model.safetensors": ("short", CheckpointError),
    "robustness.csv": ("checkpoint,corruption,severity\na,snow,1\n", RunError),
    "attention.csv": ("checkpoint,id,entropy,top_share\na,1,high,0\n", RunError),
    "metrics.jsonl": ("{\n", RunError),
}
EDITED = {
    "config.yaml": ("epochs: 1\nepochs: 2", RunError),
    "environment.json": ("[" * 100_000, RunError),
    "quarantine.json": ('{"train": {"1": 3}}', RunError),
    "metrics.jsonl": ('{"step": 1, "epoch": 0, "loss": "low"}\n', RunError),
}


@pytest.mark.parametrize(("name", "damage"), [*DAMAGED.items(), *EDITED.items()])
def test_damaged_files_are_named(tmp_path, folders, name, damage):
    content, kind = damage
    (folders[1] / name).write_text(content)
    with pytest.raises(kind, match=re.escape(str(folders[1] / name))):
        write_page(tmp_path / "report.html", folders)
    assert not (tmp_path / "report.html").exists()


def test_errors_of_the_command(tmp_path, folders, error, output):
    out = tmp_path / "report.html"
    nothing = tmp_path / "nothing"
    message = error("report", folders[0], nothing, "--out", out)
    assert (
        message
        == f"error: {nothing} is neither a run folder nor a sweep folder: it has no config.yaml and no "
        "table.csv, nor has a folder in it\n"
    )
    message = error("report", folders[0], tmp_path / "taf" / ".." / "plain", "--out", out)
    assert message == f"error: {folders[0]} is given twice\n"
    message = error("report", folders[0], "--out", nothing / "report.html")
    assert message == f"error: {nothing / 'report.html'} cannot be written: there is no folder {nothing}\n"
    assert not out.exists()
    assert output("report", *folders, "--out", out) == f"wrote {out}\n"


@pytest.mark.slow
def test_three_runs_of_174_classes_are_small(tmp_path, random):
    classes = [f"Pretending to put something next to something, number {n}" for n in range(174)]
    folders = [write_run(tmp_path / name, random, classes, clips=1000) for name in "abc"]
    require_sound(page_of(tmp_path, folders))
    assert (tmp_path / "report.html").stat().st_size < 1_000_000


@pytest.mark.slow
def test_the_same_folders_give_the_same_bytes(runs, real_page, tmp_path):
    report_in_a_process(runs, tmp_path / "again.html", "2")
    assert (tmp_path / "again.html").read_bytes() == real_page.read_bytes()


def test_real_runs(runs, real_page):
    page = Page(real_page.read_text(encoding="utf-8"))
    require_sound(page)
    top1 = [100 * read_json(run / "result.json")["evaluation"]["top1"] for run in runs]
    assert column(page, "Scores on the validation clips", "top-1 %") == [f"{value:.2f}" for value in top1]
    places = [{row["id"]: row["place"] for row in read_csv(run / "predictions.csv")} for run in runs]
    # Strips: two clips, those of which the runs are of different minds first.
    clips = [text.split()[1].rstrip(":") for _, text in page.headings if text.startswith("Clip ")]
    changed = [id for id in places[0] if (places[0][id] == "0") != (places[1][id] == "0")]
    assert len(set(clips)) == 2 and len(set(clips) & set(changed)) == min(2, len(changed))
    photographs = [a for tag, a in page.attributes if "image/jpeg" in a.get("src", "")]
    assert len(photographs) == 2
    assert real_page.stat().st_size < 2_000_000


@pytest.mark.slow
def test_only_the_clips_that_are_drawn_are_looked_at(runs, tmp_path, probed):
    page = page_of(tmp_path, runs[:1])
    (drawn, *others) = [text.split()[1].rstrip(":") for _, text in page.headings if text.startswith("Clip ")]
    assert len(others) == 1 and set(probed) == {f"{drawn}.webm", f"{others[0]}.webm"}


def test_an_installed_report_has_its_files():
    root = Path(__file__).parents[2]
    program = (
        "import distutils.core; print(distutils.core.run_setup('setup.py', stop_after='init').package_data)"
    )
    command = [sys.executable, "-c", f"import setuptools; {program}"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    patterns = ast.literal_eval(done.stdout)["taf_fast"]
    files = [path for path in (root / "taf_fast" / "report").iterdir() if path.suffix not in (".py", "")]
    assert {path.name for path in files} == {"page.css", "paper.yaml"}
    for path in files:
        assert any(path.match(f"taf_fast/{pattern}") for pattern in patterns), path
