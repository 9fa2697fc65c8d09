"""The paper's recipes: complete, explained, and each trained for a step through the command line."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from run_command import error_of, output_of

import taf_fast.run.recipes as recipes
from taf_fast import models
from taf_fast.data import ClipLoader, TrainingView
from taf_fast.data.synth import write
from taf_fast.errors import RunError
from taf_fast.run.config import FinetuneConfig

FOLDER = Path(recipes.__file__).parents[1] / "recipes"

TABLE_1 = (
    *("tsm_r50_8f_ssv1", "tsm_r50_16f_ssv1", "gst_r50_8f_ssv1", "gst_r50_16f_ssv1"),
    *("gst_large_r50_8f_ssv1", "tam_r50_8f_ssv1", "tpn_r50_8f_ssv1"),
    *("tsm_r50_8f_ssv2", "tsm_r50_16f_ssv2", "gst_r50_8f_ssv2", "tpn_r50_8f_ssv2"),
    *(f"{family}_r50_8f_diving48" for family in ("tsm", "gst", "tam", "tpn")),
)

# Values that belong to the user or the machine, or that are this project's choice.
NOT_OF_THE_PAPER = {
    *(
        "data",
        "out",
        "manifest",
        "checkpoint",
        "imagenet",
        "class_order",
        "seed",
        "tensorboard",
        "wandb",
        "log_every",
        "device",
        "compile",
        "precision",
        "deterministic",
        "accumulate",
        "exchange",
    ),
    *("decoder", "workers", "threads", "checkpoint_every", "quarantine_limit"),
}
OPTIONAL = {
    *("swap", "colour", "new_head", "new_head_lr_factor", "schedule", "warmup_epochs", "optimizer"),
    *("ema", "keep_best", "patience"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """8 classes in each format, one training and one validation clip of a class."""
    root = tmp_path_factory.mktemp("formats")
    for name in ("ssv1", "ssv2", "diving48"):
        write(
            root / name,
            train_per_class=1,
            val_per_class=1,
            size=(48, 36),
            frames=(18, 20),
            seed=5,
            format=name,
        )
    return root


def test_every_row_of_table_1_has_its_recipe():
    assert set(recipes.NAMES) == {*TABLE_1, "advprop_tsm_r50_8f_ssv1"}


def test_advprop_from_scratch():
    """Table 2a: the official training of TSM, with AdvProp's attack."""
    values = recipes.read_recipe("advprop_tsm_r50_8f_ssv1")
    fields = set(FinetuneConfig.__dataclass_fields__)
    assert fields - NOT_OF_THE_PAPER - OPTIONAL <= set(values)
    other = recipes.read_recipe("tsm_r50_8f_ssv1")
    assert {key: value for key, value in values.items() if other[key] != value} == {
        **{"augment": "advprop", "epochs": 50, "lr": 0.01, "lr_steps": (20, 40), "fc_lr5": True},
        **{"alpha": 0.5, "composition": "all", "epsilon": 4 / 255, "step_size": 1 / 255, "steps": 5},
    }


@pytest.mark.parametrize("name", TABLE_1)
def test_a_recipe_leaves_nothing_open(name):
    values = recipes.read_recipe(name)
    fields = set(FinetuneConfig.__dataclass_fields__)
    assert fields - NOT_OF_THE_PAPER - OPTIONAL <= set(values)
    family, depth, frames, dataset = re.fullmatch(r"(\w+)_r(50)_(\d+)f_(\w+)", name).groups()
    assert values["model"] == f"{family}_resnet{depth}"
    assert (values["num_segments"], values["dataset"]) == (int(frames), dataset)
    config = FinetuneConfig(data="d", out="o", **values)
    # The paper's protocol.
    assert (config.epochs, config.lr_steps, config.alpha, config.steps) == (15, (10,), 0.7, 1)
    assert (config.epsilon, config.step_size, config.num_frames) == (64 / 255, 32 / 255, None)
    assert config.composition == ("all" if dataset == "diving48" else "wrong")
    # Values that are easily confused between the official trainings.
    assert config.weight_decay == (3e-4 if "gst" in name else 5e-4)
    assert config.dropout == (0.3 if "gst" in name else 0.5)
    assert config.batch_size == (24 if "gst" in name else 64)
    assert config.clip_grad == (None if "tam" in name else 20)
    assert config.nesterov == ("tpn" in name)
    assert config.flip == ("tsm" not in name or dataset == "diving48")
    assert bool(config.swap) == ("gst" in name and dataset != "diving48")


def test_every_value_says_where_it_comes_from():
    for path in FOLDER.rglob("*.yaml"):
        lines = path.read_text().splitlines()
        assert lines[0].startswith("# "), path
        for line in lines[1:]:
            if path.parent.name == "base" and not line.startswith(("dataset:", "augment:")):
                assert re.fullmatch(r"\w+: .*\S +# .*(paper|official|ours).*", line), f"{path.name}: {line}"


@pytest.fixture
def views(monkeypatch):
    """The views of the loaders that a run makes."""
    seen = []

    def loader(*args, **options):
        seen.append(options["view"])
        return ClipLoader(*args, **options)

    monkeypatch.setattr("taf_fast.run.parts.ClipLoader", loader)
    return seen


# Every model and every data set; the other recipes have the same models with other values.
TRAINED = (
    *(f"{family}_r50_8f_ssv1" for family in ("tsm", "gst", "gst_large", "tam", "tpn")),
    *("tsm_r50_8f_ssv2", "gst_r50_8f_diving48", "advprop_tsm_r50_8f_ssv1"),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_one_step(folders, tmp_path, capsys, monkeypatch, views, name):
    """As a user calls it, with the official project's checkpoint: only the size is small."""
    values = recipes.read_recipe(name)
    torch.manual_seed(0)
    model = models.build(values["model"], 8, values["num_segments"])
    checkpoint = tmp_path / "official.pth.tar"
    torch.save(models.export(model, "official"), checkpoint)
    arguments = ["--recipe", name, "--data", folders / values["dataset"], "--checkpoint", checkpoint]
    small = ["--out", tmp_path / "run", "--size", 32, "--batch-size", 8, "--epochs", 1, "--device", "cpu"]
    printed = output_of(capsys, monkeypatch, "finetune", *arguments, *small)
    assert "(official), " in printed and "0 missing, 0 unexpected" in printed and "(8 videos)" in printed
    config = FinetuneConfig.read(tmp_path / "run" / "config.yaml")
    expected = values | {"size": 32, "batch_size": 8, "epochs": 1}
    assert {key: getattr(config, key) for key in values} == expected
    expected = TrainingView(*(getattr(config, key) for key in ("sampling", "crop", "flip", "swap", "colour")))
    assert views and set(views) == {expected}
    metrics = [yaml.safe_load(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in metrics if "loss" in line]
    assert len(steps) == 1 and steps[0]["clips"] == 8 and steps[0]["failed"] == 0
    assert steps[0]["attacked"] == 8 if config.composition == "all" else steps[0]["attacked"] >= 1
    # The trained weights convert back to their origin.
    trained, back = tmp_path / "run" / "model.safetensors", tmp_path / "back.pth"
    printed = output_of(capsys, monkeypatch, "convert", trained, back, "--to", "official")
    assert "0 missing, 0 unexpected" in printed
    before, after = (torch.load(path)["state_dict"] for path in (checkpoint, back))
    assert before.keys() == after.keys()
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    assert len(changed) > 0.9 * len(before)


@pytest.mark.slow
def test_no_clipping_is_no_limit(folders, tmp_path, capsys, monkeypatch):
    """``clip_grad: null`` trains as an unreachable limit does."""
    weights = []
    for limit in ("null", "1000000.0"):
        (tmp_path / f"{limit}.yaml").write_text(f"lr: 0.1\nclip_grad: {limit}\n")
        run = ["--data", folders / "ssv2", "--out", tmp_path / limit, "--model", "tsm_resnet18", "--size", 32]
        small = ["--batch-size", 8, "--epochs", 2, "--device", "cpu", "--recipe", tmp_path / f"{limit}.yaml"]
        output_of(capsys, monkeypatch, "finetune", *run, *small)
        weights.append((tmp_path / limit / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_other_data_are_refused(folders, tmp_path, capsys, monkeypatch):
    message = error_of(
        capsys, monkeypatch, "finetune", "--recipe", "tsm_r50_8f_ssv1", "--data", folders / "ssv2",
        "--out", tmp_path / "run", "--device", "cpu",
    )  # fmt: skip
    assert "ssv2 holds ssv2, expected ssv1" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_mmaction2_s_class_order_must_be_said(folders, tmp_path, capsys, monkeypatch):
    """Its files number Something-Something V1's classes as the labels file does."""
    model = models.build("tsm_resnet18", 8, 8)
    checkpoint = tmp_path / "mmaction2.pth"
    torch.save(models.export(model, "mmaction2"), checkpoint)
    arguments = ["--data", folders / "ssv1", "--checkpoint", checkpoint, "--size", 32, "--device", "cpu"]
    message = error_of(capsys, monkeypatch, "evaluate", *arguments)
    assert "--class-order raw" in message
    for order in ("raw", "alphabetical"):
        assert "(8 videos)" in output_of(capsys, monkeypatch, "evaluate", *arguments, "--class-order", order)
    arguments[1] = folders / "ssv2"
    message = error_of(capsys, monkeypatch, "evaluate", *arguments, "--class-order", "raw")
    assert "class_order 'raw' only applies to Something-Something V1; the data set is ssv2" in message


@pytest.mark.slow
def test_convert_with_class_orders(folders, tmp_path, capsys, monkeypatch):
    names = (folders / "ssv1" / "something-something-v1-labels.csv").read_text().splitlines()
    assert names != sorted(names)
    model = models.build("tsm_resnet18", 8, 8)
    model.fc.bias.data = torch.arange(8.0)  # class i here is the i-th name in alphabetical order
    ours, theirs, back = (tmp_path / name for name in ("o.pth", "t.pth", "b.pth"))
    torch.save(models.export(model, "official"), ours)
    raw = folders / "ssv1"
    output_of(capsys, monkeypatch, "convert", ours, theirs, "--to", "mmaction2", "--write-raw", raw)
    bias = torch.load(theirs)["state_dict"]["cls_head.fc_cls.bias"]
    assert bias.tolist() == [sorted(names).index(name) for name in names]
    output_of(capsys, monkeypatch, "convert", theirs, back, "--to", "official", "--read-raw", raw)
    assert torch.equal(torch.load(back)["state_dict"]["module.new_fc.bias"], model.fc.bias)
    message = error_of(capsys, monkeypatch, "convert", ours, theirs, "--to", "timm")
    assert "a tsm model cannot be written for 'timm'" in message


@pytest.mark.parametrize(
    "text, message",
    [
        ("lr: 0.1\nlearning: 2\n", "unknown keys: learning"),
        ("checkpoint: x.pth\nthreads: 3\n", "unknown keys: checkpoint, threads"),
        ("[1, 2]", "must be a mapping of names to values, got list"),
        ("a: [1", "is not a valid YAML file"),
        ("base: [nothing]\n", "nothing.yaml does not exist"),
        ("epsilon: 64/0\n", "epsilon must be a number or a fraction such as 64/255, got '64/0'"),
    ],
)
def test_impossible_recipes(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RunError, match=message):
        recipes.read_recipe(str(path))


def test_own_recipes(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: [taf, tsm]\nlr: 0.5\nepsilon: 8/255\n")
    values = recipes.read_recipe(str(path))
    assert (values["lr"], values["epsilon"], values["batch_size"]) == (0.5, 8 / 255, 64)
    with pytest.raises(RunError, match="no recipe 'mine', expected a YAML file or one of advprop_tsm_r50"):
        recipes.read_recipe("mine")
    with pytest.raises(RunError, match="absent.yaml does not exist"):
        recipes.read_recipe(str(tmp_path / "absent.yaml"))
