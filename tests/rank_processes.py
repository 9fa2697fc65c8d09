"""Starting the processes of a run, and looking at them and at what they measure."""

import socket
import subprocess
import time
from pathlib import Path

from taf_fast.run.metrics import read_metrics

SECONDS = 120  # for a whole run
TIMES = ("step_seconds", "wait_seconds", "time")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def rendezvous(count: int = 2) -> dict[str, str]:
    """What torchrun tells ``count`` ranks of where to meet."""
    return dict(WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))


def children(process: subprocess.Popen) -> list[int]:
    """In the order of their start."""
    return sorted(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))


def measured(out):
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(out / "metrics.jsonl")]


def steps_of(out):
    return [line for line in measured(out) if "loss" in line]


def wait_until(condition, *processes):
    """Wait while all of them run."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert not any(process.poll() is not None for process in processes) and time.monotonic() < deadline
        time.sleep(0.01)


def wait_for_steps(out, process, count):
    wait_until(lambda: len(steps_of(out)) >= count, process)
