"""Checkpoints, metrics and states: whole or absent, and read without running anybody's code."""

import json
import os
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from taf_fast import add_adversarial_bn, models
from taf_fast.run.checkpoint import (
    ModelInfo,
    load_into,
    load_model,
    load_state,
    load_weights,
    require_classes,
    save_state,
    save_weights,
)
from taf_fast.run.config import RunError
from taf_fast.run.files import write_atomically
from taf_fast.run.metrics import MetricsLog, read_metrics
from taf_fast.run.optim import build_sgd

CLASSES = ("a", "b", "c")
INFO = ModelInfo("tsm_resnet18", CLASSES, 4, 32)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    model = INFO.build()
    save_weights(path, model, INFO)
    return path, model


def test_weights_come_back_with_their_model(weights):
    path, model = weights
    loaded, info = load_model(path)
    assert info == INFO and not loaded.training
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in loaded.state_dict().items())
    assert set(load_file(path)) == set(model.state_dict())


def test_torch_save_files(tmp_path, weights):
    _, model = weights
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    for content in (state, {"state_dict": state, "epoch": 3}):
        torch.save(content, tmp_path / "w.pth.tar")
        fresh = INFO.build()
        load_into(fresh, tmp_path / "w.pth.tar", CLASSES)
        assert torch.equal(fresh.fc.weight, model.fc.weight)


class Touch:
    """A pickle that would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_checkpoint_runs_only_when_trusted(tmp_path, weights):
    trace = str(tmp_path / "ran")
    torch.save({"state_dict": weights[1].state_dict(), "meta": Touch(trace)}, tmp_path / "w.pth")
    with pytest.raises(RunError, match="--trust-checkpoint"):
        load_weights(tmp_path / "w.pth")
    assert not os.path.exists(trace)
    load_weights(tmp_path / "w.pth", trust=True)
    assert os.path.exists(trace)


def test_damaged_weights(tmp_path, weights):
    content = weights[0].read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in (0, 5, 2000, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(RunError, match="cut.safetensors is truncated or no safetensors file"):
            load_weights(path)
    torch.save(weights[1].state_dict(), tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:5000])
    with pytest.raises(RunError, match="cut.pth cannot be read"):
        load_weights(tmp_path / "cut.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(RunError, match="holds no state dict"):
        load_weights(tmp_path / "list.pth")


def test_weights_fit_wholly_or_not_at_all(tmp_path, weights):
    path, model = weights
    fresh = INFO.build()
    before = fresh.fc.weight.clone()
    with pytest.raises(RunError, match="has 3 classes, the data set has 4"):
        load_into(fresh, path, (*CLASSES, "d"))
    with pytest.raises(RunError, match="has class 1 'b' where the data set has 'c'"):
        require_classes(path, INFO, ("a", "c", "b"))
    state = model.state_dict()
    state["extra"] = state.pop("backbone.conv1.weight")
    state["backbone.bn1.weight"] = torch.zeros(3)
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(
        RunError, match="3 problems.*missing backbone.conv1.weight; unexpected extra; backbone.bn1"
    ):
        load_into(fresh, tmp_path / "odd.safetensors", CLASSES)
    assert torch.equal(fresh.fc.weight, before)
    with pytest.raises(RunError, match="does not say what its model is"):
        load_model(tmp_path / "odd.safetensors")


def test_state_comes_back(tmp_path, seed):
    torch.manual_seed(seed)

    def fresh():
        model = add_adversarial_bn(models.build("tsm_resnet18", 3, 2))
        return model, build_sgd(model, 0.1, 0.9, 1e-4, True), {"x": torch.Generator()}

    def train(model, optimizer):
        clips = torch.randn(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        optimizer.zero_grad()
        model(clips).square().sum().backward()
        optimizer.step()

    model, optimizer, generators = fresh()
    model.dropout.p = 0.0
    train(model, optimizer)
    save_state(tmp_path / "s.safetensors", model, optimizer, generators, {"step": 7})
    drawn = torch.rand(3, generator=generators["x"])
    other, other_optimizer, other_generators = fresh()
    other.dropout.p = 0.0
    assert load_state(tmp_path / "s.safetensors", other, other_optimizer, other_generators) == {"step": 7}
    assert torch.equal(torch.rand(3, generator=other_generators["x"]), drawn)
    train(model, optimizer), train(other, other_optimizer)
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    with pytest.raises(RunError, match="state of another model"):
        load_state(tmp_path / "s.safetensors", models.build("tsm_resnet18", 3, 2), optimizer, {})


def test_killed_while_writing_leaves_the_old_or_the_new_file(tmp_path):
    """A process that rewrites a file over and over is killed at random moments."""
    path = tmp_path / "w.safetensors"
    program = textwrap.dedent(f"""
        import torch
        from pathlib import Path
        from safetensors.torch import save_file
        from taf_fast.run.files import write_atomically
        n = 0
        while True:
            write_atomically(Path({str(path)!r}), lambda t: save_file({{"x": torch.full((200_000,), n)}}, t))
            n += 1
    """)
    seen = set()
    for moment in (0.05, 0.13, 0.21, 0.08):
        process = subprocess.Popen([sys.executable, "-c", program])
        before = path.stat().st_mtime_ns if path.exists() else 0
        while not path.exists() or path.stat().st_mtime_ns == before:
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(moment)
        process.kill()
        process.wait()
        values = load_file(path)["x"]
        assert len(values) == 200_000 and (values == values[0]).all()
        seen.add(values[0].item())
    assert max(seen) > 0


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"


def test_metrics(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    for step in range(5):
        log.append(step=step, loss=step / 3)
    with log.path.open("a") as file:
        file.write('{"step": 5, "lo')  # cut off by a kill
    assert [line["step"] for line in read_metrics(log.path)] == [0, 1, 2, 3, 4]
    again = MetricsLog(log.path)
    again.rewind(3)
    again.append(step=9, loss=0.1)
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [0, 1, 2, 9]
    assert again.lines == 4
