"""Runs that go on with other processes than they began with: killed, restarted, more of them or fewer."""

import json
import os
import re
import signal
import sys
from itertools import product

import numpy as np
import pytest
from rank_processes import SECONDS, children, free_port, steps_of, wait_for_steps, wait_until
from run_command import error_of, finetune_arguments, output_of
from safetensors.torch import load_file

from taf_fast.data import ClipLoader, read_ssv2, scan

RUN = dict(epochs=2, checkpoint_every=2, schedule="constant")  # 6 steps of 4 clips an epoch

# The command line, which also writes down the clips of each step. HOLD has the step, by the number of ranks,
# before which the first rank waits until it is asked to stop.
RECORDED = """
import json, os, sys, time
from taf_fast.cli import main
from taf_fast.process import ranks
from taf_fast.run.training import Training

step = Training._step

def recorded(self, batch, **about):
    number = self._state.steps_done + 1
    hold = json.loads(os.environ["HOLD"]).get(str(ranks.count()))
    while ranks.first() and number == hold and not self._stop.requested:
        time.sleep(0.01)
    with open(f"{os.environ['RECORD']}.{ranks.rank()}", "a") as file:
        file.write(json.dumps([number, ranks.count(), batch.ids]) + "\\n")
    step(self, batch, **about)

Training._step = recorded
main()
"""


def taken(record):
    """Of each step the number of ranks and the clips that each rank wrote down last."""
    found = {}
    for path in record.parent.glob(f"{record.name}.*"):
        for line in path.read_text().split("\n")[:-1]:  # the last one may be half written
            step, count, ids = json.loads(line)
            found.setdefault(step, {})[int(path.suffix[1:])] = count, ids
    return found


def clips_by_step(record):
    """The clips of each step as it was taken last."""
    # A rank that is gone may have taken the step before.
    return {
        step: [name for rank, (_, ids) in of.items() if rank < of[0][0] for name in ids]
        for step, of in taken(record).items()
    }


def require_every_clip_once_an_epoch(dataset, record, epochs):
    found = clips_by_step(record)
    assert sorted(found) == list(range(1, 6 * epochs + 1))
    every = sorted(clip.id for clip in scan(read_ssv2(dataset, "train")).clips)
    for epoch in range(epochs):
        assert sorted(name for step in range(6) for name in found[6 * epoch + step + 1]) == every


@pytest.fixture
def machine(dataset, launch, tmp_path):
    """Start a machine, as torchrun sees it, of one or two that take the steps of a run; the first one must
    stay. -> its torchrun."""
    script, port = tmp_path / "recorded.py", free_port()
    script.write_text(RECORDED)

    def start(out, record, first, hold=None):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1"]
        torchrun += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=elastic"]
        seconds = "last_call_timeout=3,keep_alive_interval=1,keep_alive_max_attempt=8"
        torchrun += ["--max-restarts=3", f"--rdzv-conf=is_host={int(first)},{seconds}"]
        # The first rank is on the machine whose address sorts first, here the one that leaves or joins.
        torchrun += [f"--local-addr=127.0.0.{1 + first}", str(script)]
        command = [*finetune_arguments(dataset, out, **RUN), "--resume"]
        environment = dict(RECORD=str(record), HOLD=json.dumps(hold or {}))
        return launch([*torchrun, *command], TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1", **environment)

    return start


@pytest.mark.slow
def test_goes_on_by_itself_with_the_ranks_that_are_left(dataset, machine, tmp_path, capsys, monkeypatch):
    """Two machines, of which the one with the first rank is lost."""
    record, out = tmp_path / "record", tmp_path / "run"
    first, second = (machine(out, record, first) for first in (True, False))
    wait_for_steps(out, first, 3)
    for pid in (second.pid, *children(second)):
        os.kill(pid, signal.SIGKILL)
    printed, errors = first.communicate(timeout=SECONDS)
    assert first.returncode == 0, errors
    assert "ranks 2 before, 1 now: from step" in printed
    assert [line["step"] for line in steps_of(out)] == list(range(1, 13))
    assert {line["clips"] for line in steps_of(out)} == {4}
    require_every_clip_once_an_epoch(dataset, record, epochs=2)

    # In parts, of which each has the clips that a rank had.
    arguments = finetune_arguments(dataset, out, **RUN | {"epochs": 3, "accumulate": 2})
    threes = finetune_arguments(dataset, out, **RUN | {"epochs": 3, "accumulate": 3})
    refused = error_of(capsys, monkeypatch, *threes, "--resume")
    assert refused == (
        "error: batch_size must be a multiple of 3, the ranks that share it times the 3 parts of each, "
        "got 4\n"
    )
    output_of(capsys, monkeypatch, *arguments, "--resume")
    lines = steps_of(out)
    assert [line["step"] for line in lines] == list(range(1, 19)) and lines[-1]["clips"] == 4
    state = load_file(out / "state.safetensors")
    assert {name for name in state if name.startswith("generator.")} == {"generator.cpu", "generator.attack"}


@pytest.mark.slow
def test_goes_on_by_itself_with_a_machine_that_joins_and_later_leaves(dataset, machine, tmp_path):
    """The second one has the first rank, and is the only one that is asked to stop."""
    record, out, hold = tmp_path / "record", tmp_path / "run", {1: 4, 2: 7}
    first = machine(out, record, True, hold)
    wait_for_steps(out, first, 2)
    second = machine(out, record, False, hold)
    # The second rank waits for the first one in step 7.
    wait_until(lambda: 1 in taken(record).get(7, ()), first, second)
    second.terminate()
    (printed, errors), (by_second, _) = (of.communicate(timeout=SECONDS) for of in (first, second))
    assert first.returncode == 0, errors
    lines = [line for line in (printed + by_second).splitlines() if re.search("ranks . before|stopped", line)]
    end = "the same clips and learning rates, but not bit for bit the same run"
    state = f"its state is in {out / 'state.safetensors'}"
    assert lines == [
        f"stopped at step 4, {state}",
        f"ranks 2 before, 1 now: from step 8 on, {end}",
        f"ranks 1 before, 2 now: from step 5 on, {end}",
        f"stopped at step 7, {state}",
    ]
    assert [line["step"] for line in steps_of(out)] == list(range(1, 13))
    assert {line["clips"] for line in steps_of(out)} == {4}
    assert {step: of[0][0] for step, of in taken(record).items()} == {
        step: 2 if 4 < step < 8 else 1 for step in range(1, 13)
    }
    require_every_clip_once_an_epoch(dataset, record, epochs=2)


@pytest.mark.parametrize("before, after", list(product((1, 2, 3, 6), repeat=2)))
def test_the_clips_of_a_step_are_the_same_for_any_number_of_ranks(dataset, before, after):
    manifest = scan(read_ssv2(dataset, "train"))

    def loaders(count, states=None):
        made = [
            ClipLoader(manifest, 8, 32, 6 // count, train=True, seed=3, rank=rank, world_size=count)
            for rank in range(count)
        ]
        for loader in made if states else ():
            loader.load_state_dict(states)
        return made

    def rest(of):
        """The clips of each step that is left."""
        batches = [loader._batches()[loader.iteration :] for loader in of]
        steps = [np.concatenate(step).tolist() for step in zip(*batches, strict=True)]
        assert all(len(step) == 6 for step in steps)
        return [set(step) for step in steps]

    (alone,) = loaders(1)
    whole = rest([alone])
    earlier = loaders(before)
    assert rest(earlier) == whole
    earlier[0].iteration = 1
    assert rest(loaders(after, earlier[0].state_dict())) == whole[1:]
