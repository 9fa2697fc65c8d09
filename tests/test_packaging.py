"""``kernels/`` is only ever ``taf_fast.kernels``."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import taf_fast
from taf_fast import cli

ROOT = Path(__file__).parents[1]


def imported_names(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module


def test_nothing_imports_a_top_level_kernels():
    files = [
        path
        for folder in ("taf_fast", "kernels", "tests", "benchmarks", "examples")
        for path in (ROOT / folder).rglob("*.py")
    ]
    assert len(files) > 20
    offenders = [path for path in files for name in imported_names(path) if name.split(".")[0] == "kernels"]
    assert not offenders


def test_kernels_import_torch_and_triton_only():
    for path in (ROOT / "kernels").glob("*.py"):
        tops = {name.split(".")[0] for name in imported_names(path)}
        assert tops <= {"torch", "triton", "taf_fast", *sys.stdlib_module_names}, (path, tops)
        assert all(
            name.startswith("taf_fast.kernels") for name in imported_names(path) if name.startswith("taf")
        )


def test_only_ops_call_kernels():
    for path in (ROOT / "taf_fast").rglob("*.py"):
        folder = path.relative_to(ROOT / "taf_fast").parts[0]
        if folder in ("ops", "kernels"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            assert not any(name.startswith("taf_fast.kernels") for name in names), path


def test_the_folder_of_kernels_is_not_a_package():
    """With an ``__init__.py`` it would hide Hugging Face's ``kernels`` from programs that run in this
    folder."""
    assert not (ROOT / "kernels" / "__init__.py").exists()


LINT = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "line", "code"),
    [
        ("errors.py", "", 0),
        ("ops/checks.py", "from taf_fast import report", 1),
        ("data/clip.py", "import taf_fast.ops", 1),
    ],
)
def test_a_forbidden_import_is_found(tmp_path, file, line, code):
    shutil.copytree(ROOT / "taf_fast", tmp_path / "taf_fast", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "taf_fast" / file).open("a") as source:
        source.write(f"\n{line}\n")
    command = [sys.executable, "-c", LINT, "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    assert ("BROKEN" in done.stdout) == bool(code), done.stdout


def test_the_printed_tree_is_the_real_one():
    block = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("```")[1]
    printed, above = set(), []
    for line in block.strip().splitlines():
        depth = (len(line) - len(line.lstrip())) // 4
        above[depth:] = [line.split()[0].rstrip("/")]
        printed.add("/".join(above))
    real = {
        str(path.parent.relative_to(ROOT))
        for folder in ("kernels", "taf_fast")
        for path in (ROOT / folder).rglob("__init__.py")
    } | {"kernels", "taf_fast/kernels"}
    assert printed == real


@pytest.mark.slow
def test_importing_leaves_the_name_kernels_alone_and_needs_no_dali():
    program = (
        "import sys, taf_fast, taf_fast.cli, taf_fast.kernels; "
        "print('kernels' in sys.modules, 'nvidia.dali' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False False", done.stderr


@pytest.mark.parametrize("name", sorted(set(taf_fast.__all__) - {"models", "ops"}))
def test_public_names_are_documented(name):
    assert len(getattr(taf_fast, name).__doc__) > 80


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that the wheel is installed into, away from the source tree."""
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns(".*", "*.egg-info", "build", "runs", "site", "__pycache__")
    shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=ignore)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    built = [*offline, "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "source")]
    subprocess.run([*pip, "wheel", *built], check=True)
    (wheel,) = folder.glob("*.whl")
    shutil.rmtree(folder / "source")
    subprocess.run([*pip, "install", *offline, "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


def run_installed(installed, folder, *command):
    """Run a command in ``folder`` with the installed package, and without the names of this environment."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(installed):
    """``taf_fast.kernels`` is real files, not a link."""
    folders = {"taf_fast": ROOT / "taf_fast", "taf_fast/kernels": ROOT / "kernels"}
    expected = {
        f"{name}/{path.relative_to(folder)}"
        for name, folder in folders.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    for name in ("py.typed", "recipes/tsm_r50_8f_ssv1.yaml", "sweeps/table4.yaml", "report/paper.yaml"):
        assert f"taf_fast/{name}" in expected
    assert not {name for name in expected if not (installed / name).is_file()}
    assert not (installed / "taf_fast" / "kernels").is_symlink()
    assert not (installed / "kernels").exists() and not (installed / "tests").exists()


DEMO = """
import sys
from taf_fast.cli import demo, main
import taf_fast.kernels.pgd_step
demo._TRAIN_PER_CLASS, demo._VAL_PER_CLASS = 1, 1
demo._BASELINE |= dict(size=32, batch_size=8, epochs=1, num_segments=4)
demo._FINETUNE |= dict(epochs=1)
print(taf_fast.kernels.pgd_step.__file__)
sys.argv = ["taf-fast", "demo"]
main()
"""


@pytest.mark.slow
def test_the_wheel_alone_runs_the_demo(installed, tmp_path):
    printed = run_installed(installed, tmp_path, "-c", DEMO)
    assert printed.splitlines()[0] == str(installed / "taf_fast" / "kernels" / "pgd_step.py")
    assert "fine-tuned with TAF" in printed and (tmp_path / "runs/demo/taf/model.safetensors").is_file()


@pytest.mark.slow
def test_the_installed_command_lists_the_recipes(installed, tmp_path):
    printed = run_installed(installed, tmp_path, installed / "bin" / "taf-fast", "recipes")
    assert all(path.stem in printed for path in (ROOT / "taf_fast" / "recipes").glob("*.yaml"))


def test_help_names_nothing_that_is_not_installed():
    from typer.main import get_command

    texts = []
    for name, command in get_command(cli.app).commands.items():
        helps = [command.help, *(getattr(parameter, "help", None) for parameter in command.params)]
        texts += [f"{name}: {text}" for text in helps]
    assert len(texts) > 100
    folders = ("docs", "examples", "experiments", "benchmarks", "tests", "tools")
    pattern = re.compile(rf"\b({'|'.join(folders)})/|README|CONTRIBUTING|\.md\b")
    assert not [text for text in texts if pattern.search(text)]
