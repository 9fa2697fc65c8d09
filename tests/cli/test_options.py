"""The options of the commands, the recipes' keys and the documentation all follow from one declaration."""

import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from run_command import command, error_of, output_of

from taf_fast import TemporalAugment, cli
from taf_fast.cli.options import BatchedOptions, TrainedOptions
from taf_fast.cli.options_page import options_page
from taf_fast.data import DECODERS, TrainingView
from taf_fast.data.loader import ClipLoader
from taf_fast.errors import RunError
from taf_fast.run.config import FIELDS, FinetuneConfig, hint_of, names_of
from taf_fast.run.recipes import recipe_values
from taf_fast.run.values import (
    AUTO,
    FREE_ON_RESUME,
    FREE_WITHIN_EXPERIMENT,
    IN_RECIPES,
    declaration,
    default_text,
    kinds,
    number,
    text,
)

ROOT = Path(__file__).parents[2]
COMMANDS = {info.name or info.callback.__name__: info.callback for info in cli.app.registered_commands}


def test_scopes():
    """What was decided value by value: a new value has to be thought about here."""
    neutral = {"out", "manifest", "workers", "threads", "checkpoint_every", "quarantine_limit"}
    neutral |= {"tensorboard", "wandb", "log_every"}
    inputs, machine = (
        {"data", "checkpoint", "imagenet", "class_order"},
        {"device", "compile", "decoder", "deterministic"},
    )
    sharing = {"accumulate", "exchange"}
    assert names_of(*FREE_ON_RESUME) == neutral | sharing
    assert names_of(*FREE_WITHIN_EXPERIMENT) == neutral | machine | sharing | {"seed"}
    assert set(FIELDS) - names_of(*IN_RECIPES) == neutral | inputs | machine | sharing


@pytest.mark.parametrize("name", FIELDS)
def test_every_value_is_declared(name):
    declared = declaration(FIELDS[name])
    assert declared.help.endswith((".", "...")) and declared.panel
    if declared.choices:
        given = {"data": "d", "out": "o", "device": "cuda"}
        for choice in declared.choices:
            assert getattr(FinetuneConfig(**given | {name: choice}), name) == choice
        with pytest.raises(RunError, match=f"{name} must be one of {', '.join(declared.choices)}.*'other'"):
            FinetuneConfig(**given | {name: "other"})


def test_choices_are_those_of_the_code_that_gets_them():
    """Declared as text where the module that has them is slow to import, or keeps them to itself."""
    assert declaration(FIELDS["decoder"]).choices == (*DECODERS, AUTO)
    for name, make in (
        ("sampling", TrainingView),
        ("crop", TrainingView),
        *((name, TemporalAugment) for name in ("gradient", "denominator", "attack_bn")),
    ):
        with pytest.raises(ValueError) as refused:
            make(**{name: "other"})
        assert f"one of {', '.join(declaration(FIELDS[name]).choices)}, got" in str(refused.value)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"momentum": 1.0}, "momentum must be in [0,1), got 1.0"),
        ({"dropout": 1.0}, "dropout must be in [0,1), or none, got 1.0"),
        ({"alpha": 1.5}, "alpha must be between 0 and 1, got 1.5"),
        ({"lr": 0.0}, "lr must be above 0 and at most 1000000000000, got 0.0"),
        ({"weight_decay": -1.0}, "weight_decay must be between 0 and 1000000000000, got -1.0"),
        ({"quarantine_limit": 2.0}, "quarantine_limit must be a fraction between 0 and 1, got 2.0"),
        ({"threads": True}, "threads must be int or none, got True"),
        ({"threads": 2, "workers": 1}, "workers must be none with threads = 2, got 1"),
        ({"manifest": 3}, "manifest must be Path or none, got 3"),
        ({"imagenet": "a", "checkpoint": "b"}, "imagenet must be none where there is a checkpoint, got 'a'"),
        ({"decoder": "mixed"}, "decoder must be pyav or dali on device cpu, got 'mixed'"),
        ({"num_frames": 9}, "num_frames must be at most num_segments = 8, got 9"),
    ],
    ids=str,
)
def test_ranges(values, message):
    with pytest.raises(RunError) as refused:
        FinetuneConfig(data="d", out="o", **values)
    assert str(refused.value) == message


def test_paths_are_paths_here_and_absolute_text_in_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = FinetuneConfig(data="some/videos", out=tmp_path, checkpoint="w.pth")
    assert (config.data, config.out, config.checkpoint) == (Path("some/videos"), tmp_path, Path("w.pth"))
    config.write(tmp_path / "c.yaml")
    values = yaml.safe_load((tmp_path / "c.yaml").read_text())
    videos = str(tmp_path / "some/videos")
    assert (values["data"], values["out"], values["manifest"]) == (videos, str(tmp_path), None)
    assert list(values) == list(FIELDS)
    read = FinetuneConfig.read(tmp_path / "c.yaml")
    assert read == dataclasses.replace(config, data=videos, checkpoint=tmp_path / "w.pth")
    config.require_same_run(read)
    monkeypatch.chdir("/")
    with pytest.raises(RunError, match=f"run's: data: '{videos}' there, 'some/videos' now; checkpoint: "):
        config.require_same_run(read)
    monkeypatch.chdir(tmp_path)
    other = dataclasses.replace(config, data=Path("others"), threads=5)
    with pytest.raises(RunError, match="run's: data: 'some/videos' there, 'others' now$"):
        other.require_same_run(config)


@pytest.mark.parametrize(
    "given, expected", [("64/255", 64 / 255), ("0.1", 0.1), ("1e-4", 1e-4), ("-3", -3.0), (" 1/3", 1 / 3)]
)
def test_numbers(given, expected):
    assert number(given) == expected


@pytest.mark.parametrize("given", ["64/0", "x", "", "1/2/3", "nan", "inf", "1e999"])
def test_no_numbers(given):
    with pytest.raises(ValueError, match="^must be a number or a fraction such as 64/255, got "):
        number(given)


@pytest.mark.parametrize(
    "value, written",
    [(64 / 255, "64/255"), (1e-4, "0.0001"), (20.0, "20"), (0.7, "0.7"), (1 / 3, "1/3"), (None, "none")]
    + [((10, 12), "10, 12"), ((), "none"), (False, "off"), (0.1234567890123, "0.1234567890123")],
)
def test_defaults_are_written_as_people_write_them(value, written):
    assert text(value) == written


NUMBERS = [name for name in FIELDS if float in kinds(hint_of(name))]


def test_every_number_of_a_recipe_may_be_a_fraction():
    assert {"epsilon", "step_size", "alpha", "lr", "clip_grad", "dropout"} <= set(NUMBERS)
    for name in set(NUMBERS) & names_of(*IN_RECIPES):
        assert recipe_values({name: "3/8"}, "here") == {name: 0.375}
        with pytest.raises(RunError, match=f"^here: {name} must be a number or a fraction such as 64/255"):
            recipe_values({name: "3/x"}, "here")


def test_every_number_of_the_command_line_may_be_a_fraction(tmp_path, monkeypatch, capsys):
    made = []
    monkeypatch.setattr("taf_fast.run.finetune.finetune", lambda config, **options: made.append(config))
    names = [name for name in NUMBERS if name in inspect.signature(COMMANDS["finetune"]).parameters]
    assert names == NUMBERS  # all of them are options
    flags = [part for name in names for part in (f"--{name.replace('_', '-')}", "3/8")]
    common = ["finetune", "--data", tmp_path, "--out", tmp_path, "--device", "cpu"]
    output_of(capsys, monkeypatch, *common, *flags)
    assert {name: getattr(made[0], name) for name in names} == dict.fromkeys(names, 0.375)
    for name in names:
        flag = f"--{name.replace('_', '-')}"
        message = error_of(capsys, monkeypatch, "finetune", "--data", tmp_path, flag, "1/0")
        assert f"'{flag}': must be a number or a fraction such as 64/255, got '1/0'" in message
    for arguments in (
        ("bench", "--share", "x"),
        (
            "perturbations",
            "--data",
            tmp_path,
            "--checkpoint",
            "c",
            "--out",
            tmp_path / "o.png",
            "--epsilon",
            "x",
        ),
    ):
        message = error_of(capsys, monkeypatch, *arguments)
        assert f"'{arguments[-2]}': must be a number or a fraction such as 64/255, got 'x'" in message
    message = error_of(capsys, monkeypatch, "bench", "--share", "1/4", "--share", "3/2")
    assert message == "error: share must be between 0 and 1, got 0.25, 1.5\n"


def test_options_win_over_the_recipe_and_leave_the_rest_to_it(tmp_path, monkeypatch, capsys):
    made = []
    monkeypatch.setattr("taf_fast.run.finetune.finetune", lambda config, **options: made.append(config))
    monkeypatch.chdir(tmp_path)
    Path("d").mkdir()
    Path("mine.yaml").write_text("lr: 1e-3\nfc_lr5: true\nlr_steps: [4]\nepsilon: 8/255\nflip: true\n")
    common = ["finetune", "--data", "d", "--recipe", "mine.yaml", "--device", "cpu"]
    output_of(capsys, monkeypatch, *common)
    output_of(
        capsys, monkeypatch, *common, "--no-fc-lr5", "--lr-step", 2, "--lr-step", 3, "--epsilon", "4/255",
        "--manifest", "m", "--threads", 5, "--compile", "--seed", 0,
    )  # fmt: skip
    recipe = FinetuneConfig(
        data=Path("d"), out=Path("runs/mine"), lr=1e-3, fc_lr5=True, lr_steps=(4,), epsilon=8 / 255, flip=True
    )
    given = dict(fc_lr5=False, lr_steps=(2, 3), epsilon=4 / 255, manifest=Path("m"), threads=5, compile=True)
    assert made == [recipe, dataclasses.replace(recipe, **given)]


def test_commands_that_try_trained_models_share_their_options():
    shared = inspect.signature(BatchedOptions).parameters
    for name in ("evaluate", "robustness", "attention"):
        parameters = inspect.signature(COMMANDS[name]).parameters
        assert {key: parameters[key].annotation for key in shared} == {
            key: parameter.annotation for key, parameter in shared.items()
        }
    assert set(inspect.signature(TrainedOptions).parameters) <= set(
        inspect.signature(COMMANDS["perturbations"]).parameters
    )


def test_trained_options_reach_the_loader(monkeypatch):
    seen = {}
    monkeypatch.setattr("taf_fast.run.trained.open_trained", lambda **given: seen.update(given))
    BatchedOptions(Path("d"), num_segments=4, size=32, device="cpu", threads=3, batch_size=5).open(
        Path("w"), views="views"
    )
    assert seen == {
        **{"data": Path("d"), "checkpoint": Path("w"), "device": torch.device("cpu"), "views": "views"},
        **{"num_segments": 4, "size": 32, "threads": 3, "batch_size": 5, "trust_checkpoint": False},
        **{"workers": None, "class_order": None, "manifest": None, "quarantine_limit": 0.1},
    }
    assert set(seen) - {"views"} <= set(inspect.signature(ClipLoader).parameters) | {
        *("data", "checkpoint", "device", "class_order", "trust_checkpoint", "manifest")
    }


@pytest.fixture(scope="module")
def help_of():
    """The help of a command in a terminal of 80 columns."""

    def run(name):
        environment = {"COLUMNS": "80", "PYTHONPATH": str(ROOT), "PATH": "", "TERM": "dumb"}
        done = subprocess.run(
            command(name, "--help"), capture_output=True, text=True, env=environment, check=True
        )
        return done.stdout

    return run


def flags_of(callback) -> set[str]:
    found = set()
    for name, parameter in inspect.signature(callback).parameters.items():
        (declared,) = parameter.annotation.__metadata__
        if type(declared).__name__ != "OptionInfo":
            continue
        declarations = [part for part in (declared.default, *(declared.param_decls or ())) if part != ...]
        flag = f"--{name.replace('_', '-')}"
        is_switch = parameter.annotation.__origin__ in (bool, bool | None)
        found |= set((declarations[0] if declarations else flag).split("/"))
        if is_switch and not declarations:
            found.add(f"--no-{flag[2:]}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["finetune", "evaluate", "attention", "bench", "sweep"])
def test_no_option_is_cut_at_80_columns(help_of, name):
    printed, flags = help_of(name), flags_of(COMMANDS[name])
    assert len(flags) > 8
    assert all(len(line) <= 80 for line in printed.splitlines())
    missing = [flag for flag in flags if not re.search(rf"{flag}(?![\w-])", printed)]
    assert not missing and "…" not in printed


@pytest.mark.slow
def test_the_help_is_grouped_and_shows_defaults_as_people_write_them(help_of):
    printed = help_of("finetune")
    assert re.findall(r"╭─ (\w+) ─", printed)[1:] == ["Run", "Data", "Model", "Training", "Attack", "Machine"]
    words = " ".join(printed.replace("│", " ").split())
    for name in ("epsilon", "lr", "lr_steps", "device", "model"):
        assert f"Default: {default_text(FIELDS[name])}." in words, name
    assert "0.2509" not in printed


def test_the_documentation_is_what_the_declarations_give():
    assert (ROOT / "docs" / "options.md").read_text(encoding="utf-8") == options_page()


@pytest.mark.slow
def test_the_help_does_not_wait_for_slow_imports():
    slow = (
        *("av", "PIL", "matplotlib", "nvidia.dali", "transformers", "scipy"),
        *("torch._dynamo", "torch._inductor", "sympy"),
    )
    program = "import sys, taf_fast.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & set(slow)
