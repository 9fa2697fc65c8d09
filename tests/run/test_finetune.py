"""Whole runs through the command line: they finish, survive being killed, and say what is wrong."""

import contextlib
import errno
import io
import json
import math
import os
import shutil
import signal
import subprocess
import time

import pytest
import torch
import yaml
from run_command import command, finetune_arguments, output_of, taf_fast
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook

from taf_fast import models
from taf_fast.errors import OutputError, RunError
from taf_fast.process.stopping import StopRequest
from taf_fast.run.config import FinetuneConfig
from taf_fast.run.finetune import finetune
from taf_fast.run.folder import RunFolder
from taf_fast.run.metrics import read_metrics
from taf_fast.run.scanned import scanned

TIMES = ("step_seconds", "wait_seconds", "time")


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
    """A TAF run from scratch, never interrupted."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    done = taf_fast(*finetune_arguments(dataset, out, checkpoint_every=3))
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def measured(out):
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(out / "metrics.jsonl")]


def wait_for_steps(out, process, steps):
    deadline = time.monotonic() + 120
    while sum("loss" in line for line in read_metrics(out / "metrics.jsonl")) < steps:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def assert_same_run(out, reference):
    assert (out / "model.safetensors").read_bytes() == (reference / "model.safetensors").read_bytes()
    assert (out / "state.safetensors").read_bytes() == (reference / "state.safetensors").read_bytes()
    assert measured(out) == measured(reference)


@pytest.mark.slow
def test_leaves_a_plain_model_and_its_story(finished):
    out, printed = finished
    weights = load_file(out / "model.safetensors")
    assert set(weights) == set(models.build("tsm_resnet18", 8).state_dict())
    lines = measured(out)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 13))
    assert all(0 <= line["attacked"] <= line["clips"] == 4 for line in steps)
    assert sum(line["attacked"] for line in steps) > 0
    assert all(
        line["loss"] == pytest.approx(0.7 * line["clean_loss"] + 0.3 * line["adv_loss"]) for line in steps
    )
    assert [line["epoch"] for line in lines if "val_top1" in line] == [0, 1]
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["alpha"] == 0.7 and config["epsilon"] == pytest.approx(64 / 255)
    assert json.loads((out / "quarantine.json").read_text()) == {"train": {}, "validation": {}}
    assert "top-1" in printed and "12/12" in printed
    assert "scan train 24/24" in printed and "scan validation 8/8" in printed
    assert not list(out.glob(".*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("kills", [[2], [4, 9]], ids=str)
def test_killed_and_resumed_equals_uninterrupted(dataset, finished, tmp_path, kills):
    """SIGKILL in mid-epoch, before and after the first state was written; bit for bit."""
    out = tmp_path / "run"
    arguments = finetune_arguments(dataset, out, checkpoint_every=3)
    for steps in kills:
        process = subprocess.Popen(command(*arguments, "--resume"), stdout=subprocess.DEVNULL)
        wait_for_steps(out, process, steps)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not (out / "model.safetensors").exists()
    done = taf_fast(*arguments, "--resume")
    assert done.returncode == 0, done.stderr
    assert_same_run(out, finished[0])


@pytest.mark.slow
def test_sigterm_saves_and_exits_cleanly(dataset, finished, tmp_path):
    out = tmp_path / "run"
    arguments = finetune_arguments(dataset, out, checkpoint_every=3)
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_steps(out, process, 4)
    process.send_signal(signal.SIGTERM)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and not errors, errors
    stopped_at = measured(out)[-1]["step"]
    assert f"stopped at step {stopped_at}" in printed
    resumed = taf_fast(*arguments, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(out, finished[0])


@pytest.mark.slow
def test_resuming_a_finished_run_changes_nothing(dataset, finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    done = taf_fast(*finetune_arguments(dataset, out, checkpoint_every=3), "--resume")
    assert done.returncode == 0, done.stderr
    assert_same_run(out, finished[0])


@pytest.mark.slow
def test_plain_fine_tuning_of_a_checkpoint(dataset, finished, tmp_path):
    weights = finished[0] / "model.safetensors"
    out = tmp_path / "plain"
    arguments = ["finetune", "--data", dataset, "--out", out, "--checkpoint", weights, "--augment", "none"]
    done = taf_fast(*arguments, "--epochs", 1, "--batch-size", 8, "--lr", 0.001, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load((out / "config.yaml").read_text())
    # The architecture comes with the checkpoint.
    assert (config["model"], config["num_segments"], config["size"]) == ("tsm_resnet18", 8, 32)
    before, after = load_file(weights), load_file(out / "model.safetensors")
    moved = max((after[k] - before[k]).abs().max().item() for k in before if k.endswith("weight"))
    assert 0 < moved < 0.1
    scores = taf_fast(
        "evaluate", "--data", dataset, "--checkpoint", out / "model.safetensors", "--out", out / "s.json"
    )
    assert scores.returncode == 0 and "top-1" in scores.stdout, scores.stderr
    assert "scan validation 8/8" in scores.stdout
    last = [line for line in measured(out) if "val_top1" in line][-1]
    values = json.loads((out / "s.json").read_text())
    assert values["top1"] == pytest.approx(last["val_top1"]) and values["loss"] == pytest.approx(
        last["val_loss"]
    )


@pytest.mark.slow
def test_bfloat16(dataset, finished, tmp_path, capsys, monkeypatch):
    """Begins as the run in float32 does, to within the format; what it leaves is float32."""
    out = tmp_path / "run"
    output_of(capsys, monkeypatch, *finetune_arguments(dataset, out, epochs=1, precision="bfloat16"))
    losses = [[line["loss"] for line in measured(folder) if "loss" in line] for folder in (out, finished[0])]
    assert len(losses[0]) == 6 and all(map(math.isfinite, losses[0]))
    assert losses[0][0] != losses[1][0] and losses[0][0] == pytest.approx(losses[1][0], rel=0.03)
    weights = load_file(out / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}
    assert yaml.safe_load((out / "config.yaml").read_text())["precision"] == "bfloat16"


@pytest.mark.slow
def test_damaged_clips_are_left_out_and_listed(dataset, tmp_path, error):
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(dataset, data)
    entries = json.loads((data / "something-something-v2-train.json").read_text())
    videos = data / "20bn-something-something-v2"
    broken = [videos / f"{entry['id']}.webm" for entry in entries[:4]]
    broken[0].unlink()
    broken[1].write_bytes(b"")
    broken[2].write_bytes(broken[2].read_bytes()[:700])
    content = bytearray(broken[3].read_bytes())
    content[:4] = b"junk"
    broken[3].write_bytes(content)
    options = dict(epochs=1, quarantine_limit=0.2)
    done = taf_fast(*finetune_arguments(data, out, **options))
    assert done.returncode == 0, done.stderr
    quarantined = json.loads((out / "quarantine.json").read_text())["train"]
    assert set(quarantined) == {path.stem for path in broken}
    assert quarantined[broken[0].stem] == "missing file" and quarantined[broken[1].stem] == "empty file"
    assert sum(line["clips"] for line in measured(out) if "loss" in line) == 20

    message = error(*finetune_arguments(data, tmp_path / "strict", epochs=1))
    assert broken[0].stem in message and "missing file" in message


@pytest.mark.slow
def test_clips_that_go_bad_during_the_run_cost_nothing(dataset, finished, tmp_path, error):
    """Files vanish while training; over the limit the run stops, and goes on when they are back."""
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(dataset, data)
    arguments = finetune_arguments(data, out)
    process = subprocess.Popen(
        command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wait_for_steps(out, process, 2)
    videos = data / "20bn-something-something-v2"
    videos.rename(data / "away")
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 2 and "missing file" in errors, errors
    (data / "away").rename(videos)
    done = taf_fast(*arguments, "--resume")
    assert done.returncode == 0, done.stderr
    steps = [line for line in measured(out) if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 13))
    assert steps[:2] == [line for line in measured(finished[0]) if "loss" in line][:2]
    # At most the clips that vanished while their batch was being read.
    assert sum(line["clips"] for line in steps) >= 48 - 2 * 2


@pytest.mark.parametrize(
    "options, words",
    [
        ({"num_frames": 9}, ["num_frames", "at most num_segments = 8", "9"]),
        ({"steps": 0}, ["steps must be at least 1"]),
        ({"epsilon": -1}, ["epsilon must be", "-1"]),
        ({"alpha": 1.5}, ["alpha must be between 0 and 1", "1.5"]),
        ({"composition": "none"}, ["composition must be one of"]),
        ({"model": "tsm"}, ["model must be one of", "tsm_resnet50"]),
        ({"precision": "float16"}, ["precision must be one of float32, bfloat16", "'float16'"]),
        ({"batch_size": 0}, ["batch_size must be at least 1"]),
        ({"device": "cuda:99"}, ["device 'cuda:99'"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_impossible_options(dataset, tmp_path, error, options, words):
    message = error(*finetune_arguments(dataset, tmp_path / "run", **options))
    assert all(word in message for word in words), message
    assert not (tmp_path / "run").exists()


def test_impossible_data(dataset, tmp_path, error):
    out = tmp_path / "run"
    assert "nothing" in error(*finetune_arguments(tmp_path / "nothing", out))
    data = tmp_path / "data"
    shutil.copytree(dataset, data)
    labels = data / "something-something-v2-labels.json"
    whole = labels.read_text()
    labels.write_text(whole[:40])
    assert labels.name in error(*finetune_arguments(data, out))
    names = json.loads(whole)
    names.pop(list(names)[-1])
    labels.write_text(json.dumps(names))
    assert "train.json" in error(*finetune_arguments(data, out))
    labels.unlink()
    assert "labels.json" in error(*finetune_arguments(data, out))
    assert not out.exists()


def test_impossible_checkpoints(dataset, finished, tmp_path, error):
    weights, out = finished[0] / "model.safetensors", tmp_path / "run"

    def of(checkpoint, **options):
        return error(*finetune_arguments(dataset, out, checkpoint=checkpoint, **options))

    assert "none.safetensors does not exist" in of(tmp_path / "none.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:100_000])
    assert "cut.safetensors is truncated" in of(cut)
    other = tmp_path / "other.pth"
    torch.save({"state_dict": models.build("tsm_resnet18", 5).state_dict()}, other)
    assert "other.pth has 5 classes, expected 8" in of(other)
    for model in ("tsm_resnet50", "gst_resnet18"):
        for file in (weights, finished[0]):  # the folder of a run is its weights
            found = of(file, model=model)
            assert f"{weights} is a tsm_resnet18 file; the run wants {model}" in found
    assert not out.exists()


def test_a_run_is_neither_overwritten_nor_resumed_as_another(dataset, finished, error):
    out = finished[0]
    before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert "holds a run already" in error(*finetune_arguments(dataset, out))
    arguments = finetune_arguments(dataset, out, lr=0.5, checkpoint_every=3)
    assert "lr: 0.01 there, 0.5 now" in error(*arguments, "--resume")
    assert before == {path: path.read_bytes() for path in out.iterdir() if path.is_file()}


@pytest.mark.slow
def test_a_state_goes_with_its_run_and_its_data(dataset, finished, tmp_path, error):
    out = tmp_path / "run"
    arguments = finetune_arguments(dataset, out, checkpoint_every=3, lr=0.02)
    shutil.copytree(finished[0], out)
    (out / "config.yaml").write_text((out / "config.yaml").read_text().replace("lr: 0.01", "lr: 0.02"))
    assert "state.safetensors is the state of another run, which differs in lr\n" in error(
        *arguments, "--resume"
    )
    (out / "config.yaml").unlink()
    message = f"{out} has state.safetensors but no config.yaml: a run without its configuration is neither"
    for more in ([], ["--resume"]):
        assert message in error(*arguments, *more)
    # The same clips, two of them under each other's label.
    data, out = tmp_path / "data", tmp_path / "other"
    shutil.copytree(dataset, data)
    arguments = finetune_arguments(data, out, epochs=1)
    assert taf_fast(*arguments).returncode == 0
    before = (out / "state.safetensors").read_bytes()
    (path,) = data.rglob("*train.json")
    clips = json.loads(path.read_text())
    first, other = clips[0], next(clip for clip in clips if clip["template"] != clips[0]["template"])
    first["id"], other["id"] = other["id"], first["id"]
    path.write_text(json.dumps(clips))
    assert "differs in train clips or labels\n" in error(*arguments, "--resume")
    assert (out / "state.safetensors").read_bytes() == before


@pytest.mark.slow
def test_a_moved_data_set_is_known_again(dataset, finished, tmp_path, error, output):
    """By its clips, labels and sizes; what comes out is what would have come out in the old place."""
    moved, other, out = tmp_path / "moved", tmp_path / "other", tmp_path / "run"
    shutil.copytree(dataset, moved)
    arguments = finetune_arguments(dataset, out, checkpoint_every=3)
    process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL)
    wait_for_steps(out, process, 4)
    process.kill()
    process.wait()
    arguments = finetune_arguments(moved, out, checkpoint_every=3)
    assert "holds a run already" in error(*arguments)
    # Videos of the same names.
    shutil.copytree(dataset, other)
    first, second = sorted(other.rglob("*.webm"))[:2]
    shutil.copy(first, second)
    before = (out / "state.safetensors").read_bytes()
    found = error(*finetune_arguments(other, out, checkpoint_every=3), "--resume")
    assert "state.safetensors is the state of another run, which differs in train sizes of files\n" in found
    assert (out / "state.safetensors").read_bytes() == before
    printed = output(*arguments, "--resume")
    assert f"the data set was in '{dataset}', now it is in '{moved}'" in printed
    assert (out / "model.safetensors").read_bytes() == (finished[0] / "model.safetensors").read_bytes()
    assert measured(out) == measured(finished[0])
    assert RunFolder(out).read_config().data == moved


@contextlib.contextmanager
def spoiled(last, value):
    """Set the first weights to ``value`` after step ``last``. -> the steps that were taken, one by one."""
    steps = []

    def spoil(optimizer, *_):
        steps.append(len(steps) + 1)
        if steps[-1] == last:
            optimizer.param_groups[0]["params"][0].data[0] = value

    hook = register_optimizer_step_post_hook(spoil)
    try:
        yield steps
    finally:
        hook.remove()


@pytest.mark.slow
def test_a_model_that_is_not_finite_is_not_saved(dataset, tmp_path):
    """Though the loss of the step was finite."""
    out = tmp_path / "run"
    config = FinetuneConfig(
        data=dataset, out=out, model="tsm_resnet18", size=32, batch_size=4, epochs=1, checkpoint_every=2
    )
    message = "step 4 left a NaN or an infinity in backbone.conv1.weight"
    with spoiled(4, math.inf), pytest.raises(RunError, match=message):
        finetune(config)
    state = load_file(out / "state.safetensors")
    assert state["model.backbone.conv1.weight"].isfinite().all()
    assert not (out / "model.safetensors").exists()
    # From there it goes on.
    assert finetune(config, resume=True).weights.is_file()
    assert sum("loss" in line for line in measured(out)) == 6


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint_every, saved", [(2, True), (9, False)])
def test_a_step_that_diverged_is_looked_at_before_anything_is_saved(
    dataset, tmp_path, checkpoint_every, saved
):
    """Else after the next step: the host does not wait for a step that a GPU still works on."""
    out = tmp_path / "run"
    config = FinetuneConfig(
        data=dataset, out=out, model="tsm_resnet18", size=32, batch_size=4, checkpoint_every=checkpoint_every
    )
    message = "step 4: loss nan, gradient norm nan, expected finite"
    with spoiled(3, math.nan) as steps, pytest.raises(RunError, match=message):
        finetune(config)
    assert steps == ([1, 2, 3, 4] if saved else [1, 2, 3, 4, 5])
    assert [line["step"] for line in measured(out)] == [1, 2, 3]
    assert (out / "state.safetensors").exists() == saved
    if saved:
        assert all(value.isfinite().all() for value in load_file(out / "state.safetensors").values())


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_before_the_first_step_stops_at_once(dataset, tmp_path, monkeypatch, output, name):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}

    def scan(*_, **__):
        os.kill(os.getpid(), getattr(signal, name))
        pytest.fail("went on")

    monkeypatch.setattr("taf_fast.run.scanned.scanned", scan)
    assert (
        output(*finetune_arguments(dataset, tmp_path / "out")) == f"stopped by {name} before the first step\n"
    )
    assert not list(tmp_path.iterdir())
    assert before == {number: signal.getsignal(number) for number in before}


def test_a_hangup_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_a_run_that_nobody_reads_saves_its_state_and_stops(dataset, tmp_path, monkeypatch):
    class Pipe(io.StringIO):
        def write(self, text):
            if "out 1/6" in text or "stopped at" in text:
                raise BrokenPipeError(errno.EPIPE, "Broken pipe")
            return super().write(text)

    out = tmp_path / "out"
    config = FinetuneConfig(data=dataset, out=out, model="tsm_resnet18", size=32, batch_size=4, epochs=1)
    monkeypatch.setattr("taf_fast.process.progress._SECONDS_BETWEEN_LINES", 0)
    with monkeypatch.context() as patched:
        patched.setattr("sys.stdout", Pipe())
        with pytest.raises(OutputError, match="stdout cannot be written: Broken pipe"):
            finetune(config)
    # The first step is printed once the second is computed; ranks learn of it before the fourth.
    assert len(measured(out)) == 3 and (out / "state.safetensors").is_file()
    assert finetune(config, resume=True).weights.is_file()
    assert sum("loss" in line for line in measured(out)) == 6


def test_data_that_no_model_can_be_trained_on(dataset, tmp_path, error, monkeypatch):
    videos = sorted(dataset.rglob("*.webm"))
    for split in ("train", "val"):
        (tmp_path / "one" / split / "a").mkdir(parents=True)
        shutil.copy(videos[0], tmp_path / "one" / split / "a")
        for name in "ab":
            (tmp_path / "none" / split / name).mkdir(parents=True)
            (tmp_path / "two" / split / name).mkdir(parents=True)
            shutil.copy(videos[0], tmp_path / "two" / split / name)
    out = tmp_path / "out"
    (tmp_path / "none" / "train" / "a" / "x.webm").write_bytes(videos[0].read_bytes())
    (tmp_path / "none" / "train" / "b" / "x.webm").write_bytes(videos[1].read_bytes())
    for data, message in (
        ("one", "has 1 class, expected at least 2 to tell apart"),
        ("none", "there are no clips for validation"),
    ):
        assert message in error(*finetune_arguments(tmp_path / data, out))
        assert not out.exists()
    # TPN's features are a single value for every clip of this size.
    for batch_size, augment in ((1, "none"), (1, "ta")):
        arguments = finetune_arguments(tmp_path / "two", out, model="tpn_resnet18", batch_size=batch_size)
        found = error(*arguments, "--augment", augment)
        assert "neck.top_down_fusion.levels.0.1 of tpn_resnet18, a batch norm, gets a single value" in found
        assert not out.exists()
    lost = next((tmp_path / "two" / "train" / "b").iterdir())
    monkeypatch.setattr(
        "taf_fast.run.scanned.scanned", lambda *a, **k: (scanned(*a, **k), lost.unlink(missing_ok=True))[0]
    )
    arguments = finetune_arguments(tmp_path / "two", out, model="tpn_resnet18", batch_size=2)
    found = error(*arguments, "--quarantine-limit", 1)
    assert "step 1 has a single good clip, of which a batch norm of tpn_resnet18 gets a single value" in found


def test_one_process_at_a_time_works_on_a_run(dataset, finished, error):
    out = finished[0]
    before = {path: path.read_bytes() for path in out.iterdir()}
    with RunFolder(out).held():
        message = error(*finetune_arguments(dataset, out, checkpoint_every=3), "--resume")
    assert f"the run in {out} is in use by process {os.getpid()} on " in message
    assert before == {path: path.read_bytes() for path in out.iterdir()}


@pytest.mark.slow
def test_a_diverged_run_stops_and_keeps_its_last_state(dataset, tmp_path, error):
    out = tmp_path / "run"
    message = error(*finetune_arguments(dataset, out, lr=1e12, checkpoint_every=1))
    assert "expected finite values" in message and str(out) in message
    steps = measured(out)
    # The loss, or a running variance, overflows first.
    assert f"step {len(steps) + 1}: loss" in message or f"step {len(steps)} left" in message
    assert all(math.isfinite(line["loss"]) for line in steps)


@pytest.mark.slow
def test_attention_strip(dataset, finished, tmp_path, error):
    out, weights = tmp_path / "strip.png", finished[0] / "model.safetensors"
    arguments = ["attention", "--data", dataset, "--checkpoint", weights, "--out", out]
    done = taf_fast(*arguments, "--checkpoint", weights)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "'nothing': no such clip" in error(*arguments, "--clip", "nothing")


def test_synth_refuses_a_full_folder(dataset, error):
    assert f"{dataset} is not empty" in error("synth", dataset)
