"""Values that no run can have: each command refuses them in one line, before it reads or writes anything."""

import sys

import pytest

from taf_fast import cli
from taf_fast.cli.app import _errors_of_the_system
from taf_fast.errors import FileError, UserError

BIG = 10**9


@pytest.fixture
def commands(tmp_path):
    """The arguments of commands, on an empty folder and files that do not exist."""
    nothing = tmp_path / "nothing"
    trained = ["--data", tmp_path, "--checkpoint", nothing]
    return {
        "finetune": ["finetune", "--data", tmp_path, "--out", nothing],
        "sweep": ["sweep", "table4", "--out", nothing, *trained],
        "evaluate": ["evaluate", *trained],
        "robustness": ["robustness", *trained],
        "attention": ["attention", *trained, "--measure", tmp_path / "a.csv"],
        "perturbations": ["perturbations", *trained, "--out", tmp_path / "p.png"],
        "bench": ["bench"],
    }


FRAMES = ("num-segments", (0, BIG), "num_segments must be between 1 and 1024")
SIZE = ("size", (-1, 0, BIG), "size must be between 1 and 4096")
WORKERS = ("workers", (0, BIG), "workers must be between 1 and 1024")
THREADS = ("threads", (0, BIG), "threads must be between 1 and 1024")
DEVICE = ("device", ("meta", "mps", "xpu", "cuda:9999", "x"), "device must be cpu, cuda or cuda:N")
BATCH = ("batch-size", (-1, 0), "batch_size")
LIMIT = ("quarantine-limit", (-1, 2), "quarantine_limit must be a fraction between 0 and 1")
EPSILON = ("epsilon", (-1, 2, 1e308), "epsilon must be between 0 and 1")
STEP_SIZE = ("step-size", (-1, 2, 1e308), "step_size must be between 0 and 1")
STEPS = ("steps", (-1, 0), "steps must be at least 1")
REFUSED = {
    "finetune": (
        *(FRAMES, SIZE, WORKERS, THREADS, DEVICE, BATCH, LIMIT, EPSILON, STEP_SIZE, STEPS),
        ("seed", (-1, 2**63, 10**20), "seed must be at least 0 and below 2^63"),
        ("lr", (-1, 0, 1e308, "1e-400"), "lr must be above 0 and at most 1000000000000"),
        ("weight-decay", (-1, 1e308), "weight_decay must be between 0 and 1000000000000"),
        ("epochs", (-1, 0), "epochs must be at least 1"),
        ("alpha", (-1, 2), "alpha must be between 0 and 1"),
        ("momentum", (-1, 1), "momentum must be in [0,1)"),
        ("clip-grad", (-1, 0), "clip_grad must be above 0"),
        ("num-frames", (0, 9), "num_frames must be at"),
    ),
    "sweep": (WORKERS, THREADS, DEVICE, LIMIT),
    **dict.fromkeys(("evaluate", "robustness", "attention"), (FRAMES, SIZE, THREADS, DEVICE, BATCH, LIMIT)),
    "perturbations": (FRAMES, SIZE, THREADS, DEVICE, LIMIT, EPSILON, STEP_SIZE, STEPS),
    "bench": (FRAMES, SIZE, THREADS, DEVICE, BATCH, STEPS),
}


@pytest.mark.parametrize("name", REFUSED)
def test_values_out_of_their_range(commands, tmp_path, error, name):
    for option, values, message in REFUSED[name]:
        for value in values:
            found = error(*commands[name], f"--{option}", value)
            assert message in found and found.count("\n") == 1, (option, value, found)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["finetune", "--lr", "nan"], "invalid value for '--lr': must be a number or a fraction"),
        (["evaluate", "--data", ".", "--batch-size", "x"], "invalid value for '--batch-size'"),
        (["scan", "--data", ".", "--workers", "0"], "invalid value for '--workers'"),
        (["finetune", "--lrr", "1"], "no such option: --lrr"),
        (["finetune", "--out", "o"], "--data is missing"),
        (["finetune", "--data"], "option '--data' requires an argument"),
        (
            ["convert", "a", "b", "c", "--to", "official"],
            "(s) (c); see taf-fast convert --help",
        ),
        (["report", "a\nb", "--out", "o"], r"a\nb"),
        (["finetun"], "no such command 'finetun'. Did you mean 'finetune'?"),
    ],
    ids=str,
)
def test_what_is_no_command_line(error, arguments, message):
    assert message in error(*arguments)


def test_without_arguments_there_is_the_help(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["taf-fast"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    assert ended.value.code == 2 and "Usage: " in printed.out and not printed.err


@pytest.mark.parametrize("arguments", [["--out", ""], ["--out="], ["--lr", "1", "--out", ""]], ids=str)
def test_an_empty_path_is_not_the_current_folder(tmp_path, monkeypatch, error, arguments):
    monkeypatch.chdir(tmp_path)
    assert error("finetune", "--data", "d", *arguments) == "error: --out is empty, expected a value\n"
    assert error("synth", "") == "error: an argument is empty, expected a value\n"
    assert not list(tmp_path.iterdir())


def test_files_that_cannot_be_written_are_refused_before_the_work(commands, tmp_path, error):
    long, file = tmp_path / ("x" * 300), tmp_path / "file"
    file.touch()
    for path, reason in (
        (tmp_path, "it is a folder, expected a regular file or none"),
        (long, "File name too long"),
        (file / "x", f"there is no folder {file}"),
    ):
        for command, option in (
            ("evaluate", "--out"),
            ("evaluate", "--predictions"),
            ("robustness", "--out"),
            ("attention", "--measure"),
        ):
            assert f"{path} cannot be written: {reason}" in error(*commands[command], option, path)
    png = tmp_path / f"{'x' * 300}.png"
    assert "File name too long" in error(*commands["perturbations"], "--out", png)
    assert list(tmp_path.iterdir()) == [file]


def test_what_the_system_refuses_is_an_error_of_the_user():
    for raised, message in (
        (OSError(28, "No space left on device", "some/file"), "some/file: No space left on device"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (MemoryError(), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "out of"),
    ):
        with pytest.raises(UserError, match=message), _errors_of_the_system():
            raise raised
    for raised in (RuntimeError("a fault of the program"), FileError("known", "known")):
        with pytest.raises(type(raised), match=str(raised)), _errors_of_the_system():
            raise raised


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epsilon: 1e999999999", "epsilon must be a number or a fraction such as 64/255, got '1e999999999'"),
        ("lr: .inf", "lr must be a finite number, got inf"),
        ("clip_grad: .nan", "clip_grad must be a finite number, or none, got nan"),
        ("lr_steps: [a]", "lr_steps must be tuple[int, ...], got ('a',)"),
        ("lr_steps: [[1]]", "lr_steps must be tuple[int, ...], got ((1,),)"),
        ("flip: true\nswap: [[a, b]]", "swap must be tuple[tuple[int, int], ...], got (('a', 'b'),)"),
        ("flip: true\nswap: [[1, 2, 3]]", "swap must be tuple[tuple[int, int], ...], got ((1, 2, 3),)"),
        ("seed: true", "seed must be int, got True"),
        ("base: taf", "base must be a list of names of recipes, got 'taf'"),
        ("base: [1]", "base must be a list of names of recipes, got [1]"),
        ("lr: 1\nlr: 2", "line 2, column 1: 'lr' is there twice"),
        ("epochs: 1:30", "1:30 is a number to base 8 or 60"),
    ],
)
def test_values_of_recipes(commands, tmp_path, error, text, message):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(text)
    found = error(*commands["finetune"], "--recipe", recipe)
    assert message in found and found.count("\n") == 1


def test_a_recipe_is_not_its_own_base(commands, tmp_path, error):
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "base").symlink_to(".")
    (folder / "a.yaml").write_text("base: [b]")
    (folder / "b.yaml").write_text("base: [a]")
    found = error(*commands["finetune"], "--recipe", folder / "a.yaml")
    assert "a.yaml has itself as a base" in found and found.count("\n") == 1
