"""Each example runs to its end and leaves a plain model; those of other libraries take literal steps."""

import os
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from libraries import import_timm
from literal_step import check_recorded, recorded_steps
from reference.splits import Split, SplitFrameNet, SplitVideoMAE

from taf_fast import models

EXAMPLES = Path(__file__).parents[1] / "examples"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


@pytest.mark.slow
def test_bare_loop(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "bare_loop.py"), run_name="__main__")
    assert "attacked" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "package, launcher, name",
    [
        ("torch", TORCHRUN, "ddp.py"),
        ("torch", TORCHRUN, "fsdp.py"),
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


@pytest.fixture
def steps(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with recorded_steps(monkeypatch) as recorded:
        yield recorded


def run(name):
    """-> the example's globals."""
    return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.mark.slow
def test_timm_loop_takes_literal_steps(steps, tmp_path):
    import_timm()
    example = run("timm_loop.py")
    weights = torch.load(tmp_path / "fine_tuned.pth")
    net = example["FrameNet"](example["backbone"])
    example["taf_fast"].strip_adversarial_bn(net)
    assert weights.keys() == net.state_dict().keys()
    assert not torch.equal(weights["backbone.conv1.weight"], net.backbone.conv1.weight)  # averages
    cfg = example["backbone"].default_cfg
    assert len(steps) == 3
    reference = SplitFrameNet(net, cfg["mean"], cfg["std"])
    assert any([check_recorded(step, reference, "module.") for step in steps])


class SplitRecognizer(Split):
    def features(self, clips):
        return self.module.backbone(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])

    def head(self, features):
        return self.module.cls_head(features.mean((3, 4))).mean(1)


@pytest.mark.slow
def test_mmengine_runner_takes_literal_steps(steps, tmp_path):
    pytest.importorskip("mmengine")
    example = run("mmengine_runner.py")
    recognizer = example["Recognizer2D"](num_classes=4)
    weights = torch.load(tmp_path / "fine_tuned.pth")
    recognizer.load_state_dict(weights)
    assert len(steps) == 8
    mean, std = ([v / 255 for v in example[key]] for key in ("MEAN", "STD"))
    reference = SplitRecognizer(recognizer, mean, std)
    assert any([check_recorded(step, reference, "module.") for step in steps])


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_transformers_trainer_takes_literal_steps(steps, tmp_path, monkeypatch, compiled):
    transformers = pytest.importorskip("transformers")
    if compiled:
        options = dict(torch_compile=True, torch_compile_backend="aot_eager")
        arguments = partial(transformers.TrainingArguments, **options)
        monkeypatch.setattr(transformers, "TrainingArguments", arguments)
    example = run("transformers_trainer.py")
    classifier = transformers.VideoMAEForVideoClassification(example["config"])
    classifier.load_state_dict(torch.load(tmp_path / "fine_tuned.pth"))
    assert len(steps) == 8
    reference = SplitVideoMAE(classifier.train(), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    # A frame of the features is two of the clip. The Trainer clips gradients.
    assert any([check_recorded(step, reference, "module.", num_frames=1, max_norm=1.0) for step in steps])


class SplitTSM(Split):
    def features(self, clips):
        return self.module.features(clips)

    def head(self, features):
        return self.module.head(features)


@pytest.mark.slow
def test_fsdp_takes_literal_steps(steps, monkeypatch):
    monkeypatch.setattr(models, "build", partial(models.build, dropout=0.0))  # nothing random in the model
    alone = dict(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    for key, value in alone.items():
        monkeypatch.setenv(key, value)
    run("fsdp.py")
    assert len(steps) == 8
    model = models.build("tsm_resnet18", 4, 4)
    reference = SplitTSM(model, model.mean, model.std)
    assert any([check_recorded(step, reference) for step in steps[:1]])
