"""Processes that end with the tests that started them."""

import contextlib
import os
import signal
import subprocess
import uuid
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def launch():
    """Start a process; what is left of any, and of those that they started, is killed at the end."""
    started, mark = [], str(uuid.uuid4())

    def launch(arguments, **environment):
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "STARTED_BY": mark} | environment
        started.append(subprocess.Popen(arguments, env=environment, **pipes))
        return started[-1]

    yield launch
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in environment.read_bytes():
                os.kill(int(environment.parent.name), signal.SIGKILL)
    for process in started:
        process.communicate()
