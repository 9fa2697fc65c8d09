"""The runs that a file of a sweep means, and files that mean none."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from sweep.sweep_files import GIVEN, SMALL, START, arguments, planned, write

from taf_fast import models
from taf_fast.sweep.plan import NAMES, read_sweep


def test_arms_times_grid_times_seeds_seed_by_seed(tmp_path):
    (tmp_path / "own.yaml").write_text("base: [taf, tsm]\nlr: 0.5\nbatch_size: 16\n")
    content = """
        base: own.yaml
        values: {epochs: 4, lr: 0.25, lr_steps: [2, 3], size: 64}
        seeds: [3, 1]
        start: {augment: none, lr: 0.125, model: gst_resnet18}
        arms:
          plain: {augment: none, model: gst_resnet18}
          1/2: {alpha: 0.5, epochs: 2, model: gst_resnet18}
        grid:
          epsilon: [8/255, 0.5]
          lr_steps: [[1], []]
        measure: [attention]
    """
    sweep = planned(tmp_path, content, threads=3)
    assert sweep.measure == ("attention",)
    expected = []
    for seed in (3, 1):
        expected.append(("start", {}, f"sweep/start/seed{seed}", seed, None, "none", 4, 0.125, 0.7, (2, 3)))
        checkpoint = f"sweep/start/seed{seed}/model.safetensors"
        for arm, folder, *values in (
            ("plain", "plain", "none", 4, 0.25, 0.7),
            ("1/2", "1_2", "ta", 2, 0.25, 0.5),
        ):
            for epsilon, epsilon_folder in (("8/255", "8_255"), ("0.5", "0.5")):
                for text, lr_steps in (("[1]", (1,)), ("[]", ())):
                    out = f"sweep/{folder}/epsilon={epsilon_folder},lr_steps={text}/seed{seed}"
                    point = {"epsilon": epsilon, "lr_steps": text}
                    expected.append((arm, point, out, seed, checkpoint, *values, lr_steps))
    found = [
        (
            r.arm,
            r.point,
            str(c.out),
            c.seed,
            c.checkpoint and str(c.checkpoint),
            c.augment,
            c.epochs,
            c.lr,
            c.alpha,
            c.lr_steps,
        )
        for r in sweep.runs
        for c in [r.config]
    ]
    assert found == expected
    assert {run.point.get("epsilon"): run.config.epsilon for run in sweep.runs} == {
        **{None: 64 / 255, "8/255": 8 / 255, "0.5": 0.5}
    }
    for run in sweep.runs:
        shared = ("videos", 3, 16, 64, "gst_resnet18")
        assert (
            str(run.config.data),
            run.config.threads,
            run.config.batch_size,
            run.config.size,
            run.config.model,
        ) == shared
    assert str(sweep.runs[2]) == "plain, epsilon 8/255, lr_steps [], seed 3"


def test_what_the_checkpoint_is_comes_from_the_start(tmp_path):
    """Model, frames and size, unless the values say otherwise."""
    content = {
        "start": START | {"num_segments": 4},
        "grid": {"size": [32, 48]},
        "values": {"num_segments": 16},
    }
    runs = planned(tmp_path, content).runs
    assert [(r.config.model, r.config.num_segments, r.config.size, str(r.config.out)) for r in runs] == [
        ("tsm_resnet18", 4, 32, "sweep/start/seed0"),
        ("tsm_resnet18", 16, 32, "sweep/size=32/seed0"),
        ("tsm_resnet18", 16, 48, "sweep/size=48/seed0"),
    ]


TABLES = {
    "table2a": ("augment", ["none", "ce", "ta"]),
    "table2b": ("alpha", [0.2, 0.5, 0.7, 0.8]),
    "table2c": ("epsilon step_size steps", [(e, s, k) for e, s in ((6, 2), (64, 32)) for k in (1, 3)]),
    "table4": ("augment", ["noise", "mixup", "cutmix", "framemixup", "cubemixup", "ta"]),
    "table6a": ("num_frames", [2, 4, 8]),
    "table6b": ("composition", ["all", "wrong", "correct"]),
}


def test_the_paper_s_tables_are_there():
    assert set(NAMES) == set(TABLES)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_paper_s_tables(tmp_path, name):
    """Three trials of each row of a table; nothing else differs from the recipe."""
    checkpoint = tmp_path / "tsm.pth"
    torch.save(models.export(models.build("tsm_resnet50", 174), "official"), checkpoint)
    runs = read_sweep(name, GIVEN | {"checkpoint": str(checkpoint)}).runs
    varied, rows = TABLES[name][0].split(), TABLES[name][1]
    scale = {"epsilon": 255, "step_size": 255}
    found = [(run.config.seed, *(getattr(run.config, v) * scale.get(v, 1) for v in varied)) for run in runs]
    expected = [(seed, *(row if isinstance(row, tuple) else (row,))) for seed in (0, 1, 2) for row in rows]
    for one, other in zip(found, expected, strict=True):
        assert one == (pytest.approx(other) if name == "table2c" else other)
    recipe = yaml.safe_load((Path(models.__file__).parents[1] / "recipes/base/taf.yaml").read_text())
    for run in runs:
        config = run.config
        assert (config.model, config.num_segments, config.dataset) == ("tsm_resnet50", 8, "ssv1")
        assert config.checkpoint == checkpoint
        for key in {"epochs", "alpha", "steps", "num_frames", "size"} - set(varied):
            assert getattr(config, key) == recipe[key]


def test_the_documentation_s_files(tmp_path):
    docs = Path(__file__).parents[2] / "docs"
    first, second, third = (
        block
        for page in ("sweeps.md", "when.md")
        for block in re.findall(r"```yaml\n(.*?)```", (docs / page).read_text(encoding="utf-8"), re.DOTALL)
    )
    weights = tmp_path / "tsm.pth"
    torch.save(models.export(models.build("tsm_resnet18", 8), "official"), weights)
    assert len(planned(tmp_path, first, checkpoint=str(weights)).runs) == 9
    assert len(planned(tmp_path, second).runs) == 2 * (1 + 6)
    assert len(planned(tmp_path, third, checkpoint=str(weights)).runs) == 6 * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("[1, 2]", "mine.yaml must be a mapping of names to values, got list"),
        ("a: [1", "mine.yaml is not a valid YAML file"),
        ("start: {}\ngrid: {alpha: [2020-01-01]}", "alpha must be float, got datetime.date(2020, 1, 1)"),
        ({"arm": {}}, "unknown keys: arm, expected some of base, values, seeds"),
        ({"arms": {}}, "nothing to compare, expected arms or a grid"),
        ({"arms": ["a"]}, "arms must be a mapping, got ['a']"),
        ({"values": None}, "values must be a mapping, got None"),
        ({"base": ["tsm"]}, "base must be the name of a recipe or a YAML file, got ['tsm']"),
        ({"base": "tsm"}, "no recipe 'tsm'"),
        ({"base": "none.yaml"}, "none.yaml does not exist"),
        ({"seeds": []}, "seeds must be whole numbers of at least 0, got []"),
        ({"seeds": [0, True]}, "seeds must be whole numbers of at least 0, got [0, True]"),
        ({"seeds": [-1]}, "seeds must be whole numbers of at least 0, got [-1]"),
        ({"seeds": 3}, "seeds must be a list, got 3"),
        ({"seeds": [0, 0]}, "start, seed 0 and start, seed 0 would share the folder"),
        ({"measure": ["speed"]}, "measure must be some of robustness, attention, got 'speed'"),
        ({"measure": [[]]}, "measure must be some of robustness, attention, got []"),
        ({"values": {"threads": 3}}, "values has unknown keys: threads"),
        ({"values": {"seed": 3}}, "values has a seed, expected it in seeds"),
        ({"start": {"epsilon": "1/0"}}, "start: epsilon must be a number or a fraction such as"),
        ({"arms": {"a": {}, "b": {"beta": 1}}}, "b has unknown keys: beta"),
        ({"arms": {"a": None}}, "a must be a mapping of names to values, got None"),
        ({"arms": {1: {}}}, "a name must be text, in quotes if need be, got '1'"),
        ({"arms": {"start": {}}}, "'start' cannot name an arm"),
        ({"arms": {"..": {}}}, "'..' cannot name an arm"),
        ({"arms": {"a/b": {}, "a_b": {}}}, "a/b, seed 0 and a_b, seed 0 would share the folder"),
        ({"arms": {"a": {}, "b": {"alpha": 2}}}, "b: alpha must be between 0 and 1, got 2"),
        ({"arms": {"a": {}, "b": {"lr": "fast"}}}, "b: lr must be a number or a fraction such as"),
        ({"arms": {"b": {"model": "gst_resnet18"}}}, "b, seed 0: model must be that of the checkpoint"),
        ({"grid": {"alpha": 0.5}}, "alpha in the grid must be a list of values, got 0.5"),
        ({"grid": {"alpha": []}}, "alpha in the grid must be a list of values, got []"),
        ({"grid": {"alpha": [0.5, 0.5]}}, "would share the folder"),
        ({"grid": {"alpha": [0.5, 7]}}, "plain, alpha=7: alpha must be between 0 and 1, got 7"),
        ({"grid": {"seed": [1]}}, "grid has a seed, expected it in seeds"),
        ({"grid": {"augment": ["ta"]}}, "augment is in plain and in the grid, expected in one"),
    ],
    ids=str,
)  # fmt: skip
def test_impossible_files(dataset, tmp_path, error, changes, message):
    file = write(tmp_path, changes if isinstance(changes, str) else SMALL | changes)
    found = error(*arguments(file, dataset, tmp_path / "out"))
    assert message in found, found
    assert not (tmp_path / "out").exists()


def test_impossible_commands(dataset, tmp_path, error):
    out, file = tmp_path / "out", write(tmp_path, SMALL)
    without = tmp_path / "without.yaml"
    without.write_text(yaml.safe_dump({"arms": SMALL["arms"]}))
    weights = tmp_path / "tsm.pth"
    torch.save(models.export(models.build("tsm_resnet50", 8), "official"), weights)
    one = "expected either a start, which makes the checkpoint, or --checkpoint"
    assert one in error(*arguments(file, dataset, out, "--checkpoint", weights))
    assert one in error(*arguments(without, dataset, out))
    assert "none.pth does not exist" in error(*arguments(without, dataset, out, "--checkpoint", "none.pth"))
    assert "no sweep 'table9', expected a YAML file or one of table2a," in error(
        *arguments("table9", dataset, out)
    )
    assert "absent.yaml does not exist" in error(*arguments("absent.yaml", dataset, out))
    # The recipe's data are others.
    message = error(*arguments("table2a", dataset, out, "--checkpoint", weights))
    assert "holds ssv2, expected ssv1" in message
    assert not out.exists()
