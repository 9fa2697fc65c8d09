"""Running a sweep: finished runs stay, stopped and killed ones go on, and the tables follow."""

import contextlib
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from taf_fast.errors import RunError
from taf_fast.files import held, make_folder
from taf_fast.measure.base import Measure
from taf_fast.plain import say
from taf_fast.process import ranks
from taf_fast.process.stopping import StopRequest
from taf_fast.run.finetune import finetune
from taf_fast.run.folder import MEASURES
from taf_fast.run.trained import open_trained
from taf_fast.sweep.plan import PlannedRun, Sweep
from taf_fast.sweep.table import measured_numbers, write_tables

_TRAINING = "training"


def run_sweep(out: Path, sweep: Sweep, trust_checkpoint: bool = False) -> bool:
    """Train and measure what is missing, and write ``runs.csv`` and ``table.csv`` after each step.

    Args:
        out: the folder that contains the folders of the runs.
        trust_checkpoint: run the code that a ``torch.save`` checkpoint may hold.

    Returns:
        False if SIGTERM or SIGINT asked to stop; a measurement is finished first.

    Raises:
        RunError: a folder holds another run than the sweep plans there; nothing is done.
        FileError: another process works on the sweep, or a file cannot be written.
        RunError, DataError, CheckpointError: see :func:`taf_fast.run.finetune.finetune`.
    """
    ranks.from_first(partial(_require_same, sweep))
    with StopRequest() as stop, contextlib.ExitStack() as stack:
        ranks.from_first(partial(_hold, out, stack))
        for number, run in enumerate(sweep.runs, 1):
            for name in ranks.from_first(partial(_missing, run, sweep.measure)):
                say(f"{run}: {name} ({number} of {len(sweep.runs)})")
                stopped = False
                if name == _TRAINING:
                    stopped = finetune(run.config, resume=True, trust_checkpoint=trust_checkpoint) is None
                else:
                    _measure(run, MEASURES[name])
                if not stopped and ranks.first():
                    write_tables(out, sweep)
                if stopped or ranks.anywhere(stop.requested):
                    say("stopped; the same command goes on from here")
                    return False
    if ranks.first():
        Console(width=400, markup=False, emoji=False).print(write_tables(out, sweep))
    return True


def _hold(out: Path, stack: contextlib.ExitStack) -> None:
    if not out.exists():
        make_folder(out)
        stack.callback(_remove_if_empty, out)  # a sweep that fails at once leaves nothing
    stack.enter_context(held(out / "sweep.lock", f"the sweep in {out}"))


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _require_same(sweep: Sweep) -> None:
    for run in sweep.runs:
        if run.folder.exists():
            try:
                run.config.require_same_run(run.folder.read_config())
            except RunError as error:
                raise RunError(f"{run.folder.path} holds another run than {run}: {error}") from None


def _missing(run: PlannedRun, measures: tuple[str, ...]) -> list[str]:
    """The steps to do, in order. Weights that are trained again are measured again."""
    if run.folder.read_result() is None:
        return [_TRAINING, *measures]
    return [name for name in measures if not measured_numbers(run.folder, MEASURES[name])]


def _measure(run: PlannedRun, measure: Measure) -> None:
    config, weights = run.config, run.folder.weights
    trained = open_trained(
        config.data,
        weights,
        torch.device(config.device),
        manifest=config.manifest,
        workers=config.workers,
        threads=config.threads,
        quarantine_limit=config.quarantine_limit,
    )
    rows = measure.rows(trained.model, trained.loader, trained.device)
    if ranks.first():
        measure.write(run.folder.measured(measure), {str(weights): rows})
