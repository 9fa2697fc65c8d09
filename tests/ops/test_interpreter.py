"""The kernels without a GPU: the op tests again, with Triton's interpreter.

In a process of its own, because Triton reads the variable when a kernel is defined.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = [
    "test_frame_cam.py",
    "test_cam_loss.py",
    "test_cam_gradient.py",
    "test_pgd_step.py",
    "test_temporal_shift.py",
    "test_far_offsets.py",
]


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is the interpreted run")
@pytest.mark.parametrize("file", FILES)
def test_op_tests_pass_with_interpreted_kernels(file, seed):
    path = Path(__file__).with_name(file)
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "TAF_FAST_SEED": str(seed),
        "CUDA_VISIBLE_DEVICES": "",  # a GPU would be handed to the interpreter, at its speed
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)]
    root = Path(__file__).parents[2]
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
