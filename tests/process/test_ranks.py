"""Some ranks on the CPU: as one process that does what both do, whatever ends them and wherever it does."""

import copy
import json
import os
import re
import shutil
import signal
import socket
import sys
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from event_files import scalars
from rank_processes import (
    SECONDS,
    children,
    measured,
    rendezvous,
    steps_of,
    wait_for_steps,
)
from run_command import command, finetune_arguments, output_of
from safetensors.torch import load_file

from taf_fast import TAFStep, add_adversarial_bn, models
from taf_fast.cli import main
from taf_fast.data import ClipLoader, read_ssv2, scan
from taf_fast.errors import RunError
from taf_fast.models.memory_format import channels_last
from taf_fast.process import ranks
from taf_fast.run.config import FinetuneConfig
from taf_fast.run.optim import build_optimizer, set_learning_rate

# 12 steps of 2 clips on each rank.
RUN = dict(epochs=2, checkpoint_every=2, schedule="cosine", warmup_epochs=1, ema=0.5, keep_best="loss")


@pytest.fixture(scope="module")
def start_ranks(launch):
    """Start the command line on ``count`` ranks."""

    def start(count, *arguments):
        group = rendezvous(count)
        return [
            launch(command(*arguments), RANK=str(rank), LOCAL_RANK=str(rank), **group)
            for rank in range(count)
        ]

    return start


@pytest.fixture(scope="module")
def in_ranks(start_ranks):
    """Run the command line on ``count`` ranks: all end with ``status``, and only the first prints."""

    def run(count, *arguments, status=0):
        processes = start_ranks(count, *arguments)
        (printed, errors), *others = [process.communicate(timeout=SECONDS) for process in processes]
        assert [process.returncode for process in processes] == [status] * count, (errors, others)
        assert others == [("", "")] * (count - 1)
        return errors if status else printed

    return run


@pytest.fixture(scope="module")
def two_ranks(in_ranks):
    return partial(in_ranks, 2)


@pytest.fixture
def torchrun(launch):
    def start(*arguments):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        return launch([sys.executable, *launcher, *command(*arguments)[1:]])

    return start


@pytest.fixture(scope="module")
def finished(dataset, two_ranks, tmp_path_factory):
    """A run that was never interrupted."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    return out, two_ranks(*finetune_arguments(dataset, out, **RUN))


@pytest.fixture
def one_thread():
    """As each rank has: the attack takes signs, which makes much of a rounding."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_end(pids):
    deadline = time.monotonic() + SECONDS
    while any(map(runs, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_equals_the_clips_of_both_ranks_in_one_process(dataset, finished, one_thread, monkeypatch):
    """An independent loop: run each rank's clips alone on a copy, then average the results."""
    out, printed = finished
    assert printed.count("top-1") == 3 and "12/12" in printed and printed.count("weights:") == 1
    assert printed.count("scan validation 8/8") == 1
    config = FinetuneConfig.read(out / "config.yaml")
    assert config.batch_size == 4
    torch.manual_seed(0)
    model = channels_last(add_adversarial_bn(models.build("tsm_resnet18", 8, 8))).train()
    optimizer = build_optimizer(model, config)
    second_seed = int(np.random.SeedSequence([0, 1]).generate_state(1)[0])
    dropout = [torch.get_rng_state(), torch.Generator().manual_seed(second_seed).get_state()]
    attack = [torch.Generator().manual_seed(seed) for seed in (0, second_seed)]
    view = config.view()
    loader = ClipLoader(scan(read_ssv2(dataset, "train")), 8, 32, 4, train=True, seed=0, view=view)

    def on(rank, batch, weight):
        """A copy of the model with a rank's gradients, what the step gave, and the generators after it."""
        monkeypatch.setattr("taf_fast.step._weight_among_ranks", weight)
        here, generator = copy.deepcopy(model), attack[rank].clone_state()
        torch.set_rng_state(dropout[rank])
        step = TAFStep(here, config.attack(), config.alpha, config.composition, compile=False)
        result = step.accumulate_grads(batch.clips[rank::2], batch.labels[rank::2], generator)
        return here, result, torch.get_rng_state(), generator

    average = None
    batches = (batch for _ in range(2) for batch in loader)
    for batch, line in zip(batches, steps_of(out), strict=True):
        attacked = sum(on(rank, batch, lambda count: 1.0)[1]["attacked"].item() for rank in (0, 1))
        assert (line["attacked"], line["clips"]) == (attacked, 4)
        # Eq. 7 has the mean over all attacked clips.
        total = max(1, attacked)
        both = [on(rank, batch, lambda count, total=total: count.double() * 2 / total) for rank in (0, 1)]
        copies, results, dropout, attack = map(list, zip(*both, strict=True))
        for name in ("loss", "clean_loss", "adv_loss"):
            assert line[name] == pytest.approx(sum(result[name].item() for result in results) / 2)
        for parameter, *own in zip(*(net.parameters() for net in (model, *copies)), strict=True):
            parameter.grad = (own[0].grad + own[1].grad) / 2
        for buffer, *own in zip(*(net.buffers() for net in (model, *copies)), strict=True):
            buffer.copy_((own[0] + own[1]) / 2)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 20.0)
        assert line["grad_norm"] == pytest.approx(norm.item())
        set_learning_rate(optimizer, line["lr"])
        optimizer.step()
        now = {name: value.double() for name, value in model.state_dict().items()}
        average = average or now
        average = {name: torch.lerp(value, now[name], 0.5) for name, value in average.items()}
    for name, value in load_file(out / "model.safetensors").items():
        if "num_batches" not in name:
            torch.testing.assert_close(value.double(), average[name], rtol=1e-5, atol=1e-5)


LEAVES = """
import os, sys, time
from taf_fast.process import ranks
try:
    with ranks.joined():
        import torch._dynamo  # whatever it imports may keep the group
        ranks.anywhere(False)
        sys.exit()
finally:
    end = time.monotonic() + 20  # a thread that ends may be listed for a moment
    while (left := len(os.listdir("/proc/self/task"))) > 1 and time.monotonic() < end:
        time.sleep(0.05)
    os.write(1, b"left: %d" % left)
"""


@pytest.mark.slow
def test_the_group_ends_with_the_command(launch):
    """A process that exits while the group's threads run may abort ("terminate called ...")."""
    group = rendezvous()
    processes = [
        launch([sys.executable, "-c", LEAVES], RANK=str(rank), LOCAL_RANK=str(rank), **group)
        for rank in (0, 1)
    ]
    assert [process.communicate(timeout=SECONDS) for process in processes] == [("left: 1", "")] * 2


def place(rank):
    return f"rank {rank} of 2 on {socket.gethostname()}"


# One rank fails, the other waits for it. The command is one exchange.
UNEVEN = """
import datetime, os, signal, sys
import torch
from taf_fast.cli import app, main
from taf_fast.errors import DataError
from taf_fast.process import ranks
from taf_fast.process.stopping import StopRequest
ranks.TIMEOUT, ranks.STOP_SECONDS, failing = datetime.timedelta(seconds=15), 2, int(sys.argv[1])
ranks.LOST_SECONDS, ranks._BEAT_SECONDS = float(sys.argv[2]), 0.5

@app.command()
def uneven():
    with StopRequest():
        if ranks.rank() == failing:
            {fault}
        os.write(1, b"waiting\\n")
        ranks.start_averaging([torch.ones(1000)])()

sys.argv = ["taf-fast", "uneven"]
main()
"""


@pytest.fixture
def uneven(launch):
    """Start two ranks, of which ``failing`` runs ``fault`` while the other waits for it."""

    def start(failing, fault, lost_seconds=100):
        script, group = UNEVEN.replace("{fault}", fault), rendezvous()
        arguments = [sys.executable, "-c", script, str(failing), str(lost_seconds)]
        both = [launch(arguments, RANK=str(rank), LOCAL_RANK=str(rank), **group) for rank in (0, 1)]
        waiting = both[1 - failing]
        assert waiting.stdout.readline() == "waiting\n"
        return both[failing], waiting

    return start


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_a_user_error_of_one_rank_ends_both(uneven, failing):
    both = uneven(failing, "raise DataError('clip 7 is bad')")
    ended = {process.communicate(timeout=SECONDS)[1] for process in both}
    assert [process.returncode for process in both] == [2, 2]
    assert ended == {"", "error: clip 7 is bad\n"}


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_another_error_of_one_rank_ends_both(uneven, failing):
    failed, waited = uneven(failing, "{}['key']")
    traceback, errors = (process.communicate(timeout=SECONDS)[1] for process in (failed, waited))
    assert (failed.returncode, waited.returncode) == (1, 2)
    assert f"{place(failing)}:\n" in traceback and "Traceback" in traceback
    assert traceback.endswith("KeyError: 'key'\n")
    # The first rank speaks for all; the second one's traceback is not hidden behind it.
    assert errors == (f"error: {place(failing)} ended with KeyError('key')\n" if failing else "")


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_a_lost_rank_ends_the_other(uneven, failing):
    killed, waited = uneven(failing, "os.kill(os.getpid(), signal.SIGKILL)")
    assert killed.wait(timeout=SECONDS) == -signal.SIGKILL
    *noise, message = waited.communicate(timeout=SECONDS)[1].splitlines()
    assert waited.returncode == 2 and not any("error: " in line for line in noise)
    assert message.startswith(f"error: {place(1 - failing)} waited for another, which has ended or not")
    assert re.search("Connection (closed|reset) by peer", message)


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_waiting_has_an_end(uneven, failing):
    """The other rank hangs: the limit of an exchange, and SIGTERM and SIGINT before it."""
    hung, waited = uneven(failing, "os.kill(os.getpid(), signal.SIGSTOP)")
    # While that one's time passes, another pair starts and is sent a signal.
    number = (signal.SIGTERM, signal.SIGINT)[failing]
    other, stopped = uneven(failing, "os.kill(os.getpid(), signal.SIGSTOP)")
    stopped.send_signal(number)
    errors = stopped.communicate(timeout=SECONDS)[1]
    assert stopped.returncode == 128 + number
    assert errors == f"error: {place(1 - failing)}: {number.name}, and no answer for 2 s: nothing was saved\n"
    errors = waited.communicate(timeout=SECONDS)[1]
    assert waited.returncode == 2 and errors.count("error: ") == 1, errors
    assert "not answered for 0.25 minutes: Timed out" in errors
    hung.kill(), other.kill()


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_without_a_sign_of_life_ends_the_other(uneven, failing):
    """Where no exchange tells, as in a wait for a GPU."""
    hung, waited = uneven(failing, "os.kill(os.getpid(), signal.SIGSTOP)", lost_seconds=6)
    errors = waited.communicate(timeout=SECONDS)[1]
    # The first rank holds the store.
    lost = (
        f"{place(1)} gives no sign of life for 6 s"
        if failing
        else "the store of the ranks does not answer for 6 s"
    )
    assert errors == f"error: {place(1 - failing)}: {lost}, and no answer for 2 s: nothing was saved\n"
    assert waited.returncode == 2
    hung.kill()


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(dataset, finished, torchrun, two_ranks, tmp_path):
    """SIGTERM to torchrun, then SIGKILL to one rank and to torchrun itself; bit for bit."""
    out = tmp_path / "run"
    arguments = [*finetune_arguments(dataset, out, **RUN), "--resume"]

    process = torchrun(*arguments)
    wait_for_steps(out, process, 1)
    process.terminate()
    printed, _ = process.communicate(timeout=SECONDS)
    stopped_at = steps_of(out)[-1]["step"]
    assert printed.count(f"stopped at step {stopped_at},") == 1 == printed.count("stopped")

    process = torchrun(*arguments)
    wait_for_steps(out, process, stopped_at + 1)
    first, second = children(process)
    os.kill(second, signal.SIGKILL)
    process.communicate(timeout=SECONDS)
    assert process.returncode == 1 and len(steps_of(out)) < 12
    wait_for_end([first])

    done = len(steps_of(out))
    process = torchrun(*arguments)
    wait_for_steps(out, process, done + 1)
    both = children(process)
    process.kill()
    process.communicate(timeout=SECONDS)
    wait_for_end(both)
    assert len(steps_of(out)) < 12 and not (out / "model.safetensors").exists()

    two_ranks(*arguments)
    for name in ("model.safetensors", "best.safetensors", "state.safetensors", "quarantine.json"):
        assert (out / name).read_bytes() == (finished[0] / name).read_bytes(), name
    assert measured(out) == measured(finished[0])
    if find_spec("tensorboard"):  # its file is the first rank's
        losses = [step for tag, step in scalars(out) if tag == "train/loss"]
        assert losses == [line["step"] for line in steps_of(out)]


@pytest.mark.slow
def test_three_ranks_of_which_one_is_killed(dataset, start_ranks, in_ranks, tmp_path):
    """The others end, and the run resumed equals an uninterrupted one bit for bit: where a gradient lies
    decides how its sum over more than two ranks is rounded."""
    values = RUN | {"batch_size": 6}
    whole, out = tmp_path / "whole", tmp_path / "run"
    in_ranks(3, *finetune_arguments(dataset, whole, **values))
    assert len(steps_of(whole)) == 8

    arguments = finetune_arguments(dataset, out, **values)
    first, second, third = start_ranks(3, *arguments)
    wait_for_steps(out, first, 3)
    second.kill()
    said = []
    for process in (first, third):
        lines = process.communicate(timeout=SECONDS)[1].splitlines()  # some are PyTorch's own
        said.append([line for line in lines if line.startswith("error: ")])
    assert (first.returncode, third.returncode) == (2, 2)
    # The first rank repeats what the third one says if that one noticed first.
    message = "error: rank {} of 3 on {} waited for another, which has ended or".format
    own, of_third = (message(rank, socket.gethostname()) for rank in (0, 2))
    assert len(said[0]) == 1 and said[0][0].startswith((own, of_third)), said
    assert len(said[1]) <= 1 and all(line.startswith(of_third) for line in said[1]), said
    assert len(steps_of(out)) < 8

    in_ranks(3, *arguments, "--resume")
    for name in ("model.safetensors", "best.safetensors", "state.safetensors", "quarantine.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert measured(out) == measured(whole)


def test_the_state_is_of_all_ranks(finished):
    state = load_file(finished[0] / "state.safetensors")
    for name in ("cpu", "attack"):
        assert not torch.equal(state[f"generator.{name}"], state[f"generator.{name}.rank1"])


# A rank has an error after its clean backward, while the other goes on into the exchanges of the step.
MID_STEP = """
import sys
from taf_fast import TAFStep
from taf_fast.cli import main
from taf_fast.errors import DataError
from taf_fast.process import ranks

adversarial_pass, calls = TAFStep._adversarial_pass, []

def failing(self, *arguments):
    calls.append(0)
    if len(calls) == 3 and ranks.rank() == 1:
        raise DataError("clip 7 is bad")
    return adversarial_pass(self, *arguments)

TAFStep._adversarial_pass = failing
main()
"""


@pytest.mark.slow
def test_a_user_error_in_mid_step_ends_all(dataset, launch, tmp_path):
    arguments, group = finetune_arguments(dataset, tmp_path / "run", **RUN), rendezvous()
    both = [
        launch([sys.executable, "-c", MID_STEP, *arguments], RANK=str(rank), LOCAL_RANK=str(rank), **group)
        for rank in (0, 1)
    ]
    errors = [process.communicate(timeout=SECONDS)[1] for process in both]
    assert [process.returncode for process in both] == [2, 2] and errors == ["error: clip 7 is bad\n", ""]
    assert (tmp_path / "run" / "state.safetensors").exists()  # of the second step


@pytest.mark.slow
def test_machines_with_folders_of_their_own(dataset, finished, launch, tmp_path):
    """The second one has its data elsewhere and no folder of the run, whose end is computed again."""
    out, group = shutil.copytree(finished[0], tmp_path / "first"), rendezvous()
    for name in ("model.safetensors", "result.json"):
        (out / name).unlink()
    elsewhere = shutil.copytree(dataset, tmp_path / "data")
    folders = [(dataset, out), (elsewhere, tmp_path / "second")]
    both = [
        launch(
            [*command(*finetune_arguments(*folders[rank], **RUN)), "--resume"],
            RANK=str(rank),
            LOCAL_RANK="0",
            **group,
        )
        for rank in (0, 1)
    ]
    errors = [process.communicate(timeout=SECONDS)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    name = "model.safetensors"
    assert (out / name).read_bytes() == (finished[0] / name).read_bytes()
    assert not folders[1][1].exists()


@pytest.mark.slow
def test_evaluates_as_one_process(dataset, finished, two_ranks, tmp_path, capsys, monkeypatch):
    """With 7 clips, the second rank has 3 and an empty batch at the end."""
    data = shutil.copytree(dataset, tmp_path / "data")
    validation = data / "something-something-v2-validation.json"
    validation.write_text(json.dumps(json.loads(validation.read_text())[:7]))
    arguments = ["evaluate", "--data", data, "--checkpoint", finished[0] / "model.safetensors"]
    arguments += ["--device", "cpu", "--batch-size", 1, "--out"]
    printed = two_ranks(*arguments, tmp_path / "two")
    assert output_of(capsys, monkeypatch, *arguments, tmp_path / "one") == printed
    assert printed.count("(7 videos)") == 1
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one", "two"))
    assert two.pop("loss") == pytest.approx(one.pop("loss"), rel=1e-5) and two == one


@pytest.mark.slow
def test_a_clip_that_only_one_rank_finds_damaged(dataset, two_ranks, tmp_path, capsys, monkeypatch):
    data, out = shutil.copytree(dataset, tmp_path / "data"), tmp_path / "run"
    output_of(capsys, monkeypatch, "scan", "--data", data)
    manifest = scan(read_ssv2(data, "train"))
    loader = ClipLoader(manifest, 8, 32, 2, train=True, seed=0, rank=1, world_size=2)
    damaged = [batch.ids[0] for batch in loader][1]
    path = next(clip.path for clip in manifest.clips if clip.id == damaged)
    before = path.stat()
    path.write_bytes(path.read_bytes()[:800] + np.random.default_rng(0).bytes(before.st_size - 800))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as the manifest has it

    arguments = finetune_arguments(data, out, **RUN | {"epochs": 1, "warmup_epochs": 0})
    errors = two_ranks(*arguments, "--quarantine-limit", 0, status=2)
    assert errors.startswith("error: 1 of 24 clips are bad") and errors.count(f": {damaged}: ") == 1
    assert [line["clips"] for line in steps_of(out)] == [4]

    # The first rank, whose batch was good, has not gone past it.
    two_ranks(*arguments, "--resume")
    assert [line["clips"] for line in steps_of(out)] == [4, 3, 4, 4, 4, 4]
    quarantined = json.loads((out / "quarantine.json").read_text())
    assert quarantined["train"].keys() == {damaged} and quarantined["validation"] == {}


@pytest.mark.slow
def test_a_diverged_run_ends_on_all_ranks(dataset, two_ranks, tmp_path):
    errors = two_ranks(*finetune_arguments(dataset, tmp_path / "run", lr=1e12), status=2)
    assert errors.count("error: ") == 1 and "expected finite values" in errors


def test_restarts_need_a_store_of_their_own(error, monkeypatch, capsys):
    torchrun = dict(TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_MAX_RESTARTS="3", RANK="0")
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    assert "works only with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment" in error("recipes")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and capsys.readouterr() == ("", "")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code


@pytest.mark.slow
def test_ranks_that_cannot_share(dataset, two_ranks, tmp_path, monkeypatch):
    out = tmp_path / "run"
    errors = two_ranks(*finetune_arguments(dataset, out, batch_size=3), status=2)
    assert errors == "error: batch_size must be a multiple of 2, the ranks that share it, got 3\n"
    assert not out.exists()
    monkeypatch.setattr(ranks, "count", lambda: 2)
    with pytest.raises(RunError, match="device must be cpu or cuda for 2 ranks, got cuda:1"):
        ranks.own_device("cuda:1")
