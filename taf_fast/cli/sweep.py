"""Ablations: many runs that differ in few values."""

from pathlib import Path
from typing import Annotated

import typer

from taf_fast.run.sweep_plan import NAMES, read_sweep

from .app import app
from .options import DEFAULT, ClassOrder, Data, Device, ManifestOption, Threads, Trust, device_of


@app.command()
def sweep(
    file: Annotated[
        str, typer.Argument(help=f"YAML file, see docs/sweeps.md, or one of the paper's: {', '.join(NAMES)}.")
    ],
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the runs and tables; goes on with what is there.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights that all runs start from, if FILE does not have a start.")
    ] = None,
    class_order: ClassOrder = None,
    manifest: ManifestOption = None,
    device: Device = None,
    compile: Annotated[bool | None, typer.Option(help="torch.compile. Default: on a GPU only.")] = None,
    decoder: Annotated[str, typer.Option(help="pyav, dali or, on a GPU, mixed.")] = DEFAULT["decoder"],
    threads: Threads = DEFAULT["threads"],
    trust_checkpoint: Trust = False,
) -> None:
    """Train all runs of an ablation and tabulate them, with mean and deviation over seeds."""
    from taf_fast.report.attention import attention_rows
    from taf_fast.run.robustness import robustness
    from taf_fast.run.sweep import run_sweep

    device = str(device_of(device))
    given = {
        "data": str(data),
        "out": str(out),
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "class_order": class_order,
        "manifest": None if manifest is None else str(manifest),
        "device": device,
        "compile": device.startswith("cuda") if compile is None else compile,
        "decoder": decoder,
        "threads": threads,
    }
    planned = read_sweep(file, given, trust_checkpoint)
    measures = {"robustness": robustness, "attention": attention_rows}
    if run_sweep(out, planned, measures, trust_checkpoint):
        print(f"wrote {out / 'table.csv'} and {out / 'runs.csv'}")
