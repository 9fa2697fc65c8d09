"""Forks a process for each command of the tests of faults, so that the imports are done once.

Reads a job a line from stdin, JSON, and answers each with a line on stdout:

- {"start": arguments, ...} -> the process id. "folder": in which every step of writing adds a byte to the
  file "events"; with "signal", the process sends itself that signal before the step "at". "limit": the most
  bytes of any file.
- {"wait": process id, "seconds": how long} -> [status or null if it had to be killed, stdout, stderr]. A
  status is negative for a signal.
"""

import gc
import json
import os
import resource
import select
import signal
import sys
import time

# Of the standard library's audit events, those in which a file system changes; "open" if it is for writing.
_STEPS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def counted(folder: str, events: str, at: int | None, number: int) -> None:
    """Count the steps of writing in ``folder``; send ``number`` to this process before the step ``at``."""
    file, done = os.open(events, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 0

    def step(event: str, arguments: tuple) -> None:
        nonlocal done
        writing = event in _STEPS or (event == "open" and arguments[2] & _WRITING)
        if writing and not isinstance(arguments[0], int) and os.fspath(arguments[0]).startswith(folder):
            done += 1
            os.write(file, b".")
            if done == at:
                os.kill(os.getpid(), number)

    sys.addaudithook(step)


def start(job: dict, ends: dict[int, list[int]]) -> int:
    pipes = [os.pipe(), os.pipe()]
    process = os.fork()
    if process:
        for _, theirs in pipes:
            os.close(theirs)
        ends[process] = [ours for ours, _ in pipes]
        return process
    os.setsid()
    for number, (_, theirs) in enumerate(pipes, 1):
        os.dup2(theirs, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if "limit" in job:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], job["limit"]))
    if "folder" in job:
        counted(job["folder"], job["events"], job.get("at"), job.get("signal", 0))
    sys.argv = ["taf-fast", *job["start"]]
    from taf_fast.cli import main

    main()
    raise AssertionError("main ends with SystemExit")


def wait(process: int, seconds: float, pipes: list[int]) -> list:
    deadline, printed, status = time.monotonic() + seconds, {pipe: b"" for pipe in pipes}, None
    left, late = list(pipes), False
    while left or status is None:
        for pipe in select.select(left, [], [], 0.01)[0]:
            text = os.read(pipe, 65536)
            printed[pipe] += text
            if not text:
                left.remove(pipe)
        if status is None:
            ended, found = os.waitpid(process, os.WNOHANG)
            status = os.waitstatus_to_exitcode(found) if ended else None
        if time.monotonic() > deadline:
            late = True
            try:
                os.killpg(process, signal.SIGKILL)  # with the processes that it started
            except ProcessLookupError:
                left.clear()
    for pipe in pipes:
        os.close(pipe)
    return [None if late else status, *(text.decode(errors="replace") for text in printed.values())]


def main() -> None:
    import taf_fast.cli.scan
    import taf_fast.data.cache.write
    import taf_fast.report.page
    import taf_fast.run.finetune
    import taf_fast.run.trained
    import taf_fast.sweep.run  # noqa: F401

    # The forked processes would otherwise take half a second each to free what they do not own.
    gc.collect()
    gc.freeze()
    ends: dict[int, list[int]] = {}
    for line in iter(sys.stdin.readline, ""):
        job = json.loads(line)
        if "start" in job:
            answer = start(job, ends)
        else:
            answer = wait(job["wait"], job["seconds"], ends.pop(job["wait"]))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
