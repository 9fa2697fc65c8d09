"""Checkpoints, metrics and states: whole or absent, and read without running anybody's code."""

import contextlib
import dataclasses
import json
import math
import os
import pickle
import re
import socket
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from taf_fast import add_adversarial_bn, files, models
from taf_fast.data import VideoDataset
from taf_fast.errors import FileError, RunError
from taf_fast.files import held, remove_temporaries, write_atomically, write_text
from taf_fast.models import CheckpointError
from taf_fast.run.checkpoint import (
    ModelInfo,
    first_not_finite,
    load_state,
    read_info,
    require_classes,
    save_state,
    save_weights,
)
from taf_fast.run.config import FinetuneConfig
from taf_fast.run.metrics import MetricsLog, read_metrics
from taf_fast.run.model import build_model
from taf_fast.run.optim import build_optimizer

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


def test_weights_at_a_path_that_is_no_text(weights, tmp_path):
    path = tmp_path / os.fsdecode(b"\xff")
    path.write_bytes(weights[0].read_bytes())
    with pytest.raises(CheckpointError, match="needs a path that is UTF-8"):
        read_info(path)
    torch.save(weights[1].state_dict(), path)
    assert read_info(path) is None and models.inspect(path).model == INFO.model


def test_weights_say_what_their_model_is(tmp_path, weights):
    with pytest.raises(CheckpointError, match="has 3 classes, the data set has 4"):
        require_classes(weights[0], INFO, (*CLASSES, "d"))
    with pytest.raises(CheckpointError, match="has class 1 'b' where the data set has 'c'"):
        require_classes(weights[0], INFO, ("a", "c", "b"))
    save_file(weights[1].state_dict(), tmp_path / "bare.safetensors")
    assert read_info(tmp_path / "bare.safetensors") is None


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_state_comes_back(tmp_path, seed, optimizer):
    torch.manual_seed(seed)
    config = FinetuneConfig(data="d", out="o", optimizer=optimizer, lr=0.1, fc_lr5=True)

    def fresh():
        model = add_adversarial_bn(models.build("tsm_resnet18", 3, 2))
        return model, build_optimizer(model, config), {"x": torch.Generator()}

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


@pytest.mark.parametrize("fused, device", [(True, "meta"), (None, "cpu")])
def test_counts_of_a_fused_optimiser_are_on_its_device(tmp_path, fused, device):
    """A kernel on a GPU cannot read the host's memory; a device without memory stands in for one."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    path = tmp_path / "s.safetensors"
    save_state(path, model, optimizer, {"x": torch.Generator().get_state()}, {"step": 1})
    with torch.device("meta"):
        other = torch.nn.Linear(3, 2)
    other_optimizer = torch.optim.AdamW(other.parameters(), fused=fused)
    with pytest.warns(UserWarning, match="meta parameter"):
        load_state(path, other, other_optimizer)
    states = other_optimizer.state.values()
    assert [state["step"].device.type for state in states] == [device] * 2
    assert {state["exp_avg"].device.type for state in states} == {"meta"}


@pytest.mark.slow
def test_a_damaged_byte_of_a_state_is_noticed(tmp_path, seed, generator):
    """Anywhere in the tensors and in the header."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    path = tmp_path / "s.safetensors"
    save_state(path, model, optimizer, {"x": torch.Generator().get_state()}, {"step": 7})
    content = path.read_bytes()
    assert load_state(path, model, optimizer)[0] == {"step": 7}
    header = 8 + int.from_bytes(content[:8], "little")
    places = [*range(8, header, 7), *range(header, len(content), 97)]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(torch.randint(8, (), generator=generator))
        path.write_bytes(damaged)
        try:
            position, states = load_state(path, model, optimizer)
        except CheckpointError:
            continue
        # Space around a header's names and numbers means nothing.
        assert place < header and position == {"step": 7} and states.keys() == {"x"}, place


@pytest.mark.slow
def test_a_damaged_byte_of_weights_is_noticed(weights, tmp_path, seed, generator):
    path, (content, model) = tmp_path / "w.safetensors", (weights[0].read_bytes(), weights[1])
    dataset = VideoDataset(tmp_path, "train", CLASSES, (), "ssv2")
    header = 8 + int.from_bytes(content[:8], "little")
    places = [*range(8, header, header // 40), *range(header, len(content), len(content) // 40)]
    key = content.index(b'"taf_fast"')
    for place in [*places, *range(key, key + 10, 3)]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(torch.randint(8, (), generator=generator))
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="w.safetensors"):
            build_model(dataset, INFO.model, INFO.num_segments, checkpoint=path)
    # What an earlier version wrote has no checksum.
    save_file(model.state_dict(), path, metadata={"taf_fast": json.dumps(dataclasses.asdict(INFO))})
    assert read_info(path) == INFO
    loaded = build_model(dataset, INFO.model, INFO.num_segments, checkpoint=path).state_dict()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.items())
    save_file(model.state_dict(), path, metadata={"taf_fast": '{"model": 3}'})
    with pytest.raises(CheckpointError, match="has a damaged header"):
        read_info(path)


def test_a_state_lacks_nothing(tmp_path):
    """Whoever takes a tensor out of it, such as one parameter's momentum, is found out."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    path = tmp_path / "s.safetensors"
    save_state(path, model, optimizer, {}, {"step": 7})
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    del tensors["optimizer.momentum_buffer.bias"]
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(CheckpointError, match="s.safetensors is damaged"):
        load_state(path, model, optimizer)


@pytest.mark.parametrize("name", ["fc.weight", "base.bn1.running_var"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1])
def test_weights_that_no_training_gives_are_refused(tmp_path, name, value):
    model = models.build(INFO.model, len(CLASSES), INFO.num_segments)
    assert first_not_finite(model) is None
    key = next(key for key in model.state_dict() if key.endswith(name.removeprefix("base.")))
    model.state_dict()[key].view(-1)[-1] = value
    save_weights(tmp_path / "w.safetensors", model, INFO)
    dataset = VideoDataset(tmp_path, "validation", CLASSES, (), "ssv2")
    expected = "a variance below 0" if value == -1 else "a NaN or an infinity"
    refused = pytest.raises(CheckpointError, match=f"w.safetensors: {key} has {expected}")
    with contextlib.nullcontext() if (name, value) == ("fc.weight", -1) else refused:
        build_model(dataset, INFO.model, INFO.num_segments, checkpoint=tmp_path / "w.safetensors")


@pytest.mark.slow
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

    with pytest.raises(FileError, match="file cannot be written: disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("kind", ["a folder", "a device", "a FIFO", "a socket"])
def test_only_regular_files_are_replaced(tmp_path, kind):
    path = tmp_path / "x"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a device":
        path.symlink_to("/dev/null")
    elif kind == "a FIFO":
        os.mkfifo(path)
    else:
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(path))
    before = path.stat()
    with pytest.raises(
        FileError, match=f"x cannot be written: it is {kind}, expected a regular file or none"
    ):
        write_text(path, "new")
    assert os.path.samestat(path.stat(), before) and os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("exists", [True, False])
def test_links_are_followed_to_their_target(tmp_path, exists):
    folder = tmp_path / "folder"
    folder.mkdir()
    if exists:
        (folder / "target").write_text("old")
    (tmp_path / "second").symlink_to("folder/target")
    (tmp_path / "first").symlink_to("second")
    write_text(tmp_path / "first", "new")
    assert (tmp_path / "first").is_symlink() and (tmp_path / "second").is_symlink()
    assert (folder / "target").read_text() == "new" and os.listdir(folder) == ["target"]


def test_temporary_names_differ(tmp_path):
    names = []
    for _ in range(2):
        write_atomically(tmp_path / "x", lambda temporary: names.append(temporary) or temporary.touch())
    assert names[0] != names[1] and {name.parent.parent for name in names} == {tmp_path}
    assert os.listdir(tmp_path) == ["x"]


WRITER = """
import sys, time
from pathlib import Path
from taf_fast.files import write_atomically
def write(path):
    path.with_name(".of-a-writer").touch()
    print(path.parent, flush=True)
    time.sleep(600)
write_atomically(Path(sys.argv[1]), write)
"""


@pytest.mark.slow
def test_what_a_killed_write_leaves_goes_with_the_next_and_that_of_a_living_one_stays(tmp_path):
    start = [sys.executable, "-c", WRITER, tmp_path / "x"]
    with subprocess.Popen(start, stdout=subprocess.PIPE, text=True) as process:
        left = Path(process.stdout.readline().strip())
        write_text(tmp_path / "x", "while it lives")
        assert sorted(path.name for path in left.iterdir()) == [".of-a-writer", "file"]
        elsewhere = left.with_name(".taf_fast-01234567-0.tmp")
        elsewhere.mkdir()
        process.kill()
    write_text(tmp_path / "x", "after it")
    # Whether a process of another machine lives, only the holder of a folder may decide.
    assert sorted(os.listdir(tmp_path)) == [elsewhere.name, "x"]
    remove_temporaries(tmp_path)
    assert os.listdir(tmp_path) == ["x"]


def test_a_folder_that_is_removed_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    for removed_after in ("lock", "_open_folder"):
        real, times = getattr(files, removed_after), []

        def remove_once(argument, real=real, times=times):
            result = real(argument)
            if not times:
                times.append(None)
                (folder,) = tmp_path.glob(".taf_fast-*")
                folder.rmdir()
            return result

        monkeypatch.setattr(files, removed_after, remove_once)
        write_text(tmp_path / "x", removed_after)
        assert times and (tmp_path / "x").read_text() == removed_after and os.listdir(tmp_path) == ["x"]


def test_files_have_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "text", "x")
        save_weights(tmp_path / "weights.safetensors", torch.nn.Linear(1, 1), INFO)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o640}


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    for path in (tmp_path / "no folder" / "x", tmp_path / ("x" * 300)):
        with pytest.raises(FileError) as caught:
            write_text(path, "x")
        assert str(caught.value).startswith(f"{path} cannot be written: ")
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


HOLDER = """
import sys, time
from pathlib import Path
from taf_fast.files import held
with held(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_one_process_holds_a_lock_and_the_dead_hold_none(tmp_path):
    path = tmp_path / "x.lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        expected = f"it is in use by process {process.pid} on {socket.gethostname()}, expected one at a time"
        with pytest.raises(FileError, match=re.escape(expected)), held(path, "it"):
            pass
        process.kill()
    assert path.exists()
    ours = f"it is in use by process {os.getpid()} on"
    with held(path, "it"), pytest.raises(FileError, match=ours), held(path, "it"):
        pass
    assert not path.exists()


def test_metrics(tmp_path):
    log, marks = MetricsLog(tmp_path / "m.jsonl"), []
    for step in range(5):
        log.append(step=step, loss=step / 3, step_seconds=time.monotonic())
        marks.append((log.lines, log.checksum))
    whole = log.path.read_text()
    with log.path.open("a") as file:
        file.write('{"step": 5, "lo')  # cut off by a kill
    assert [line["step"] for line in read_metrics(log.path)] == [0, 1, 2, 3, 4]
    again = MetricsLog(log.path)
    again.rewind(*marks[2])
    again.append(step=9, loss=0.1)
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [0, 1, 2, 9]
    assert again.lines == 4
    with pytest.raises(RunError, match="m.jsonl has 4 lines, but the saved state counts on 5"):
        MetricsLog(log.path).rewind(*marks[4])
    with pytest.raises(RunError, match="its first 4 lines are not those that the saved state counts on"):
        MetricsLog(log.path).rewind(*marks[3])
    for mended in (whole.replace(": ", ":"), whole + "{}\n"):  # the same values, and more lines
        log.path.write_text(mended)
        MetricsLog(log.path).rewind(*marks[4])
        assert log.path.read_text() == whole
    log.path.unlink()
    with pytest.raises(RunError, match="m.jsonl has 0 lines, but the saved state counts on 1"):
        MetricsLog(log.path).rewind(*marks[0])
