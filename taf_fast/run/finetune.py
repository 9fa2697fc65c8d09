"""A fine-tuning run, and a trial of its first step."""

import contextlib
import dataclasses
import resource
import sys
import time

import torch
from torch import Tensor

from taf_fast.data import DataError
from taf_fast.errors import RunError, Stopped
from taf_fast.plain import say
from taf_fast.process import ranks
from taf_fast.process.stopping import StopRequest
from taf_fast.run.begin import begin
from taf_fast.run.claim import Claim
from taf_fast.run.config import FinetuneConfig
from taf_fast.run.folder import RunFolder
from taf_fast.run.optim import learning_rates, set_learning_rate
from taf_fast.run.parts import Parts, build
from taf_fast.run.result import Result
from taf_fast.run.state import RunState
from taf_fast.run.trackers import require_trackers
from taf_fast.run.training import Training
from taf_fast.run.unsettled import Measured, Unsettled


def finetune(config: FinetuneConfig, resume: bool = False, trust_checkpoint: bool = False) -> Result | None:
    """Run ``config`` to its end, or until SIGTERM, SIGINT or SIGHUP asks to stop.

    Ranks (:func:`taf_fast.process.ranks.joined`) share the clips of every step. They average gradients and
    batch statistics, so that their models are always equal.

    Args:
        config: without a checkpoint, training starts from random or ImageNet weights.
        resume: go on from the state in ``config.out``, if there is one. On the same machine, with as many
            threads and ranks, the result is bit for bit that of a run that was never interrupted, and that
            had as many epochs from the start if there are more of them now. Another number of ranks, or of
            parts (``accumulate``), takes the same clips in the same steps; batch norms then see other
            groups of them, and generators are new ones.
        trust_checkpoint: run the code that a ``torch.save`` checkpoint may hold.

    Returns:
        The result, or None if the run was asked to stop and saved its state in ``config.out``, unless it had
        not yet begun. It also stops if nothing can be printed any more, with an OutputError.

    Raises:
        RunError: a value cannot work, or the loss, the gradient or the model is no longer finite.
        DataError, CheckpointError: the data or a checkpoint cannot be read, or does not fit.
        FileError: another process works on the run, or a file cannot be written.
        Stopped: a signal came before the first step of a run of several ranks.
        SystemExit: another rank was asked to stop, and the state is saved; the status is ``ranks.AGAIN``.
    """
    with StopRequest(at_once=True) as stop, contextlib.ExitStack() as stack:
        try:
            require_trackers(config)
            folder = RunFolder(config.out)
            claim = Claim(folder, resume, stack)
            claim.look(config)
            parts = build(config, stack, trust_checkpoint)
        except Stopped as stopped:
            if ranks.count() > 1:
                raise
            say(stopped)
            return None
        stop.at_once = False
        # Nothing is written before the run is known to work and all ranks have looked into the folder.
        claim.make(parts.config)
        state = RunState(parts, folder)
        training = Training(state, begin(state, stack), stop)
        try:
            result = training.train()
        except DataError as error:
            # The weights are sound, so the run can go on once the data are mended. All ranks must save.
            if error.known_to_all_ranks:
                training.save()
            raise
        if result is None and not stop.requested:
            sys.exit(ranks.AGAIN)
        return result


@dataclasses.dataclass(frozen=True)
class DryRun:
    """The first batch of a run, and what a training step of it takes on this rank.

    ``clips`` uint8 [B,T,H,W,3] on the CPU, with their ``labels`` as names of classes and their ``ids``;
    ``steps`` of an epoch; ``memory``, the largest so far, in bytes of the ``device`` (the process on a CPU);
    ``step_seconds`` and ``load_seconds`` of the batch.
    """

    clips: Tensor
    labels: tuple[str, ...]
    ids: tuple[str, ...]
    device: torch.device
    loss: float
    steps: int
    memory: int
    step_seconds: float
    load_seconds: float

    @property
    def epoch_seconds(self) -> float:
        """An estimate, without validation: clips are loaded while the step before is computed."""
        return self.steps * max(self.step_seconds, self.load_seconds)


def dry_run(config: FinetuneConfig, trust_checkpoint: bool = False) -> DryRun:
    """Build all of a run and compute its first step twice, the second time to measure it; write nothing.

    The folder ``config.out`` is not looked at. Arguments and errors are those of :func:`finetune`.
    """
    require_trackers(config)
    with contextlib.ExitStack() as stack:
        return _try_out(build(config, stack, trust_checkpoint))


def _try_out(parts: Parts) -> DryRun:
    """The first step, which pays for allocations and compilation, and the same once more."""
    if parts.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(parts.device)
    with ranks.together():
        batch = next(iter(parts.train))
    set_learning_rate(parts.optimizer, next(learning_rates(parts.config, len(parts.train))))
    measured: list[Measured] = []
    unsettled = Unsettled(measured.append)
    for number in (1, 2):
        started = time.perf_counter()
        unsettled.add(parts.optimizer_step.take(batch, number))
        unsettled.settle()
        if (failure := measured[-1].failure()) is not None:
            raise RunError(f"{failure}; nothing was saved")
        seconds = time.perf_counter() - started
    if parts.device.type == "cuda":
        memory = torch.cuda.max_memory_reserved(parts.device)
    else:
        memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return DryRun(
        batch.clips.cpu(),
        tuple(parts.info.classes[label] for label in batch.labels.tolist()),
        tuple(batch.ids),
        parts.device,
        loss=measured[0].values["loss"],
        steps=len(parts.train),
        memory=memory,
        step_seconds=seconds,
        load_seconds=batch.wait,
    )
