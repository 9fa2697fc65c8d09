"""Each example runs to its end and leaves a plain model."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from taf_fast import models

EXAMPLES = Path(__file__).parents[1] / "examples"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def test_bare_loop(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "bare_loop.py"), run_name="__main__")
    assert "attacked" in capsys.readouterr().out


@pytest.mark.parametrize(
    "package, launcher, name",
    [
        ("torch", TORCHRUN, "ddp.py"),
        ("accelerate", TORCHRUN, "accelerate_trainer.py"),
        ("lightning", (), "lightning_trainer.py"),
    ],
)
def test_example_in_two_processes(package, launcher, name, tmp_path):
    pytest.importorskip(package)
    run = subprocess.run(
        [sys.executable, *launcher, str(EXAMPLES / name)],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("clips attacked") == 4 * (1 if package == "accelerate" else 2)

    torch.manual_seed(0)
    model = models.build("tsm_resnet18", 4, 4)
    before = model.fc.weight.clone()
    model.load_state_dict(torch.load(tmp_path / "fine_tuned.pth"), strict=True)
    assert model.fc.weight.isfinite().all() and not torch.equal(model.fc.weight, before)
    # The clean batch norms were trained; those of the attacked clips are gone.
    assert model.backbone.bn1.num_batches_tracked == 4
