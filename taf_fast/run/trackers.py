"""The numbers of a run for TensorBoard and Weights & Biases, the same as in ``metrics.jsonl``."""

import importlib.util
import os
import secrets
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from taf_fast.errors import MissingDependency, RunError
from taf_fast.files import write_atomically, write_text, writing
from taf_fast.run.config import FinetuneConfig
from taf_fast.run.folder import RunFolder

_OWN_NAMES = {
    "clean_loss": "train/clean_loss",
    "adv_loss": "train/adv_loss",
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "lr": "train/lr",
    "epoch": "train/epoch",
    "failed": "attack/failed",
    "by_running_statistics": "attack/by_running_statistics",
    "wait_seconds": "time/wait_seconds",
    "step_seconds": "time/step_seconds",
}


def points(line: dict, num_segments: int) -> dict[str, float]:
    """What is drawn of a line of ``metrics.jsonl``, by name.

    Besides the line's own numbers: ``train/accuracy``, the share of the step's clips that the model
    classified correctly before it learnt from them; ``attack/share``, that of attacked clips; both in [0,1];
    and ``time/frames_per_second``, waiting included.
    """
    if "loss" not in line:
        named = ((name, value) for name, value in line.items() if name.startswith("val_"))
        return {f"validation/{name.removeprefix('val_')}": value for name, value in named}
    found = {tag: line[name] for name, tag in _OWN_NAMES.items() if name in line}
    found["train/accuracy"] = line["correct"] / line["clips"]
    if "attacked" in line:
        found["attack/share"] = line["attacked"] / line["clips"]
    seconds = line["step_seconds"] + line["wait_seconds"]
    found["time/frames_per_second"] = line["clips"] * num_segments / seconds
    return found


class Tracker(Protocol):
    """Gets every line of the metrics that it is to show; what an earlier process wrote comes first."""

    def add(self, line: dict) -> None: ...

    def close(self) -> None: ...


class EventFile:
    """An event file of TensorBoard in the folder of a run, in place of those of earlier processes.

    A resumed run measures the steps after its last state again. All steps before are therefore written anew,
    from the lines of the metrics that count, with the times at which they were measured.
    """

    def __init__(self, folder: RunFolder, config: FinetuneConfig, lines: Iterable[dict]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary, self._writer = Event, Summary, RecordWriter
        self._num_segments = config.num_segments
        now = time.time()
        # A running TensorBoard forgets what it has read of the files before.
        start = Event(wall_time=now, step=0, session_log=SessionLog(status=SessionLog.START))
        begin = [Event(wall_time=now, file_version="brain.Event:2"), start, *map(self._of, lines)]
        earlier = sorted(folder.path.glob("*.tfevents.*.taf_fast"))
        self.path = folder.path / _file_name(now)

        def write(path: Path) -> None:
            with path.open("wb") as file:
                for event in begin:
                    RecordWriter(file).write(event.SerializeToString())

        write_atomically(self.path, write)
        for path in earlier:
            if path != self.path:
                path.unlink()
        with writing(self.path):
            self._file = self.path.open("ab")

    def _of(self, line: dict) -> Any:
        values = [
            self._summary.Value(tag=tag, simple_value=value)
            for tag, value in points(line, self._num_segments).items()
        ]
        return self._event(
            wall_time=line.get("time", 0.0), step=line["step"], summary=self._summary(value=values)
        )

    def add(self, line: dict) -> None:
        with writing(self.path):
            self._writer(self._file).write(self._of(line).SerializeToString())
            self._file.flush()

    def close(self) -> None:
        with writing(self.path):
            self._file.close()


def _file_name(now: float) -> str:
    """TensorBoard reads files with this part in their name, in the order of their names."""
    return f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}.taf_fast"


class WeightsAndBiases:
    """The run on Weights & Biases, the same one for all processes that work on the run.

    Steps that it knows already, which a resumed run measures again, it leaves as they are.
    """

    def __init__(self, folder: RunFolder, config: FinetuneConfig, lines: Iterable[dict]) -> None:
        import wandb

        if not folder.wandb_id.exists():
            write_text(folder.wandb_id, secrets.token_hex(4))
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "taf_fast"),
                id=folder.wandb_id.read_text(encoding="utf-8"),
                name=folder.path.name,
                dir=str(folder.path),
                resume="allow",
                config=config.plain(),
            )
        except wandb.Error as error:
            raise RunError(f"Weights & Biases does not start the run: {error}") from None
        self._num_segments = config.num_segments
        for line in lines:
            self.add(line)

    def add(self, line: dict) -> None:
        self._run.log(points(line, self._num_segments), step=line["step"])

    def close(self) -> None:
        self._run.finish()


def require_trackers(config: FinetuneConfig) -> None:
    """Raise MissingDependency unless the packages that the configuration asks for can be used."""
    if config.tensorboard and not _installed("tensorboard"):
        raise MissingDependency("tensorboard needs its package: pip install taf_fast[tensorboard]")
    if config.wandb and not _installed("wandb"):
        raise MissingDependency("wandb needs its package: pip install wandb")
    if _writes_events(config):
        try:
            import tensorboard.summary.writer.record_writer  # noqa: F401
        except Exception as error:  # of the packages that it needs, each in its own way
            raise MissingDependency(
                f"tensorboard is installed but cannot be imported: {error!r}; "
                "--no-tensorboard does without it"
            ) from None


class Trackers:
    """Those that the configuration asks for, of one process. Of the steps they get every ``log_every``th."""

    def __init__(self, folder: RunFolder, config: FinetuneConfig, lines: Iterable[dict]) -> None:
        self._every = config.log_every
        lines = [line for line in lines if self._shown(line)]
        self._all: list[Tracker] = []
        if _writes_events(config):
            self._all.append(EventFile(folder, config, lines))
        if config.wandb:
            self._all.append(WeightsAndBiases(folder, config, lines))

    def _shown(self, line: dict) -> bool:
        return "loss" not in line or line["step"] % self._every == 0

    def add(self, line: dict) -> None:
        for tracker in self._all if self._shown(line) else ():
            tracker.add(line)

    def close(self) -> None:
        for tracker in self._all:
            tracker.close()


def _writes_events(config: FinetuneConfig) -> bool:
    return _installed("tensorboard") if config.tensorboard is None else config.tensorboard


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
