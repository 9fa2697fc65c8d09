"""``kernels/`` is only ever ``taf_fast.kernels``."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import taf_fast

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


def test_dependencies_point_one_way():
    """cli -> run -> (data, models, step) -> augment -> ops -> kernels."""
    forbidden = {
        "ops": ("models", "data", "run", "report", "augment", "step", "cli", "demo"),
        "models": ("data", "run", "report", "augment", "step", "dual_batch_norm", "cli", "demo"),
        "data": ("ops", "models", "run", "report", "augment", "step", "cli", "demo"),
        "run": ("cli", "demo", "report"),
    }
    for folder, names in forbidden.items():
        for path in (ROOT / "taf_fast" / folder).rglob("*.py"):
            imported = [name for name in imported_names(path) if name.startswith("taf_fast.")]
            assert not [name for name in imported if name.split(".")[1] in names], path


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


def test_installed_package_has_its_kernels(tmp_path):
    """A plain install, away from the source tree: ``taf_fast.kernels`` is real files, not a link."""
    copy = tmp_path / "source"
    ignore = shutil.ignore_patterns(".*", "*.egg-info", "build", "runs", "__pycache__")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=ignore)
    target = tmp_path / "site"
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(copy)], check=True)
    program = "import taf_fast, taf_fast.kernels.pgd as pgd; print(pgd.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(target)},
    )
    assert done.stdout.strip() == str(target / "taf_fast" / "kernels" / "pgd.py"), done.stderr
    assert not (target / "kernels").exists()
