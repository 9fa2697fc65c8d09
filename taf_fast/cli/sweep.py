"""Ablations: many runs that differ in a few values."""

from pathlib import Path
from typing import Annotated, Any

import typer

from taf_fast.cli.app import app
from taf_fast.cli.options import Trust, machine_of, option, with_run_values
from taf_fast.plain import say
from taf_fast.run.config import RUN
from taf_fast.run.recipes import packaged

_OPTIONS = (
    *("data", "checkpoint", "class_order", "manifest", "quarantine_limit"),
    *("device", "compile", "decoder", "workers", "threads"),
)


@app.command()
@with_run_values(
    "given",
    _OPTIONS,
    required=["data"],
    data=option("data", default=""),
    checkpoint=option(
        "checkpoint", help="Weights that all runs start from, unless FILE has a start.", default=""
    ),
)
def sweep(
    file: Annotated[
        str,
        typer.Argument(
            help="YAML file in the form of the package's own in taf_fast/sweeps, or one of these of the "
            f"paper: {', '.join(packaged('sweeps'))}."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Folder of the runs and tables; a sweep that was stopped goes on there.", rich_help_panel=RUN
        ),
    ],
    given: dict[str, Any],
    trust_checkpoint: Trust = False,
) -> None:
    """Train all runs of an ablation and tabulate them, with mean and standard deviation over seeds."""
    from taf_fast.sweep.plan import read_sweep
    from taf_fast.sweep.run import run_sweep

    given = {"checkpoint": None, "out": out} | machine_of(given)
    planned = read_sweep(file, given, trust_checkpoint)
    if run_sweep(out, planned, trust_checkpoint):
        say(f"wrote {out / 'table.csv'} and {out / 'runs.csv'}")
