"""Checkpoints, metrics and states: whole or absent, and read without running anybody's code."""

import json
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from taf_fast import add_adversarial_bn, models
from taf_fast.files import write_atomically
from taf_fast.models import CheckpointError
from taf_fast.run.checkpoint import (
    ModelInfo,
    load_state,
    read_info,
    require_classes,
    save_state,
    save_weights,
)
from taf_fast.run.metrics import MetricsLog, read_metrics
from taf_fast.run.optim import build_sgd

CLASSES = ("a", "b", "c")
INFO = ModelInfo("tsm_resnet18", CLASSES, 4, 32)


def load_model(path):
    """By what the file says of itself alone."""
    info = read_info(path)
    model = models.build(info.model, len(info.classes), info.num_segments, **info.options)
    models.load(model, path)
    return model.eval(), info


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    model = models.build(INFO.model, len(CLASSES), INFO.num_segments)
    save_weights(path, model, INFO)
    return path, model


def test_weights_come_back_with_their_model(weights):
    path, model = weights
    loaded, info = load_model(path)
    assert info == INFO
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in loaded.state_dict().items())
    assert set(load_file(path)) == set(model.state_dict())


def test_weights_say_what_their_model_is(tmp_path, weights):
    with pytest.raises(CheckpointError, match="has 3 classes, the data set has 4"):
        require_classes(weights[0], INFO, (*CLASSES, "d"))
    with pytest.raises(CheckpointError, match="has class 1 'b' where the data set has 'c'"):
        require_classes(weights[0], INFO, ("a", "c", "b"))
    save_file(weights[1].state_dict(), tmp_path / "bare.safetensors")
    assert read_info(tmp_path / "bare.safetensors") is None


def test_what_the_weights_depend_on_comes_back(tmp_path):
    for name, options in (
        ("tpn_resnet18", {"mixed_shortcut": False}),
        ("tam_resnet18", {"temporal_stride": True}),
    ):
        model = models.build(name, 3, 4, **options).eval()
        path = tmp_path / f"{name}.safetensors"
        save_weights(path, model, ModelInfo(name, CLASSES, 4, 32, model.options))
        loaded, _ = load_model(path)
        clips = torch.randn(1, 4, 3, 32, 32)
        assert loaded.options == options and torch.equal(loaded(clips), model(clips))


def test_state_comes_back(tmp_path, seed):
    torch.manual_seed(seed)

    def fresh():
        model = add_adversarial_bn(models.build("tsm_resnet18", 3, 2))
        return model, build_sgd(model, 0.1, 0.9, 1e-4, True, False), {"x": torch.Generator()}

    def train(model, optimizer):
        clips = torch.randn(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        optimizer.zero_grad()
        model(clips).square().sum().backward()
        optimizer.step()

    model, optimizer, generators = fresh()
    model.dropout.p = 0.0
    train(model, optimizer)
    states = {name: generator.get_state() for name, generator in generators.items()}
    save_state(tmp_path / "s.safetensors", model, optimizer, states, {"step": 7})
    drawn = torch.rand(3, generator=generators["x"])
    other, other_optimizer, other_generators = fresh()
    other.dropout.p = 0.0
    position, states = load_state(tmp_path / "s.safetensors", other, other_optimizer)
    assert position == {"step": 7} and states.keys() == {"x"}
    other_generators["x"].set_state(states["x"])
    assert torch.equal(torch.rand(3, generator=other_generators["x"]), drawn)
    train(model, optimizer), train(other, other_optimizer)
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    with pytest.raises(CheckpointError, match="state of another model"):
        load_state(tmp_path / "s.safetensors", models.build("tsm_resnet18", 3, 2), optimizer)


def test_killed_while_writing_leaves_the_old_or_the_new_file(tmp_path):
    """A process that rewrites a file over and over is killed at random moments."""
    path = tmp_path / "w.safetensors"
    program = textwrap.dedent(f"""
        import torch
        from pathlib import Path
        from safetensors.torch import save_file
        from taf_fast.files import write_atomically
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
