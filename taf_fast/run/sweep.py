"""Running a sweep: finished runs stay, stopped and killed ones go on, and the tables follow."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from taf_fast.data import ClipLoader
from taf_fast.files import write_csv
from taf_fast.run import ranks
from taf_fast.run.config import FinetuneConfig, RunError
from taf_fast.run.finetune import finetune
from taf_fast.run.stopping import StopRequest
from taf_fast.run.sweep_plan import Run, Sweep
from taf_fast.run.sweep_table import read_measured, read_result, write_tables
from taf_fast.run.trained import open_trained

# The rows of a CSV from a trained model and the validation videos.
Measure = Callable[[nn.Module, ClipLoader, torch.device], list[dict]]

_TRAINING = "training"


def run_sweep(out: Path, sweep: Sweep, measures: dict[str, Measure], trust_checkpoint: bool = False) -> bool:
    """Do what is not done yet: train, measure, and write ``runs.csv`` and ``table.csv`` after each.

    Args:
        out: the folder that the runs' own ones are in.
        measures: by the names in ``sweep.measure``; their rows are kept as ``NAME.csv`` in the run's folder.
        trust_checkpoint: run the code a ``torch.save`` checkpoint may hold.

    Returns:
        False if SIGTERM or SIGINT asked to stop; a measurement is finished first.

    Raises:
        RunError: a folder holds another run than the sweep has there; nothing is done.
        RunError, DataError, CheckpointError: see :func:`taf_fast.run.finetune.finetune`.
    """
    ranks.from_first(lambda: [_require_same(run) for run in sweep.runs])
    with StopRequest() as stop:
        for number, run in enumerate(sweep.runs, 1):
            for name in ranks.from_first(partial(_missing, run, sweep.measure)):
                print(f"{run}: {name} ({number} of {len(sweep.runs)})", flush=True)
                stopped = False
                if name == _TRAINING:
                    stopped = finetune(run.config, resume=True, trust_checkpoint=trust_checkpoint) is None
                else:
                    _measure(run, name, measures[name])
                if not stopped and ranks.first():
                    write_tables(out, sweep)
                if stopped or ranks.anywhere(stop.requested):
                    print("stopped; the same command goes on from here")
                    return False
    if ranks.first():
        Console(width=400, markup=False).print(write_tables(out, sweep))
    return True


def _require_same(run: Run) -> None:
    if (path := run.folder / "config.yaml").exists():
        try:
            run.config.require_same_run(FinetuneConfig.read(path))
        except RunError as error:
            raise RunError(f"{run.folder} holds another run than {run}: {error}") from None


def _missing(run: Run, measures: tuple[str, ...]) -> list[str]:
    """What is to be done, in that order. Weights that are made again are measured again."""
    if read_result(run.folder) is None:
        return [_TRAINING, *measures]
    return [name for name in measures if read_measured(run.folder, name) is None]


def _measure(run: Run, name: str, measure: Measure) -> None:
    config, weights = run.config, run.folder / "model.safetensors"
    trained = open_trained(
        Path(config.data),
        weights,
        torch.device(config.device),
        manifest=None if config.manifest is None else Path(config.manifest),
        threads=config.threads,
    )
    rows = measure(trained.model, trained.loader, trained.device)
    if ranks.first():
        write_csv(run.folder / f"{name}.csv", [{"checkpoint": str(weights)} | row for row in rows])
