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


def rendezvous() -> dict[str, str]:
    """What torchrun tells two ranks of where to meet."""
    return dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))


def children(process: subprocess.Popen) -> list[int]:
    """In the order of their start."""
    return sorted(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))


def measured(out):
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(out / "metrics.jsonl")]


def steps_of(out):
    return [line for line in measured(out) if "loss" in line]


def wait_for_steps(out, process, count):
    deadline = time.monotonic() + SECONDS
    while len(steps_of(out)) < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
