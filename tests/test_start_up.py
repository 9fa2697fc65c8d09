"""Importing the package must be about as fast as importing torch."""

import subprocess
import sys

import pytest

# torch.compile is a second and a half of imports; video, pictures and DALI are for the commands that need
# them.
SLOW = ("torch._dynamo", "torch._inductor", "sympy", "av", "PIL", "matplotlib", "nvidia.dali", "scipy")


def imported_after_torch(statement: str) -> set[str]:
    """The modules that ``statement`` imports in a process that has imported torch."""
    program = f"import sys, torch; before = set(sys.modules); {statement}; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.slow
def test_importing_the_package_imports_little_more_than_torch():
    modules = imported_after_torch("import taf_fast")
    assert not modules & set(SLOW)
    assert "taf_fast.ops.frame_cam" in modules  # and yet the ops are registered
    assert len(modules) < 180, len(modules)
