"""Scores of trained models on corrupted videos."""

from pathlib import Path
from typing import Annotated

import typer

from taf_fast.corruptions import NAMES, SEVERITIES
from taf_fast.files import write_csv
from taf_fast.run import ranks
from taf_fast.run.config import RunError
from taf_fast.run.trained import open_trained

from .app import app
from .options import (
    ClassOrder,
    Data,
    Device,
    ManifestOption,
    Segments,
    Size,
    Threads,
    Trust,
    device_of,
    require_folder,
)


@app.command()
def robustness(
    data: Data,
    checkpoint: Annotated[
        list[Path],
        typer.Option(help="Weights of finetune or of those that evaluate takes; repeat to compare."),
    ],
    corruption: Annotated[list[str], typer.Option(help="May be repeated.")] = NAMES,
    severity: Annotated[list[int], typer.Option(help="May be repeated.")] = SEVERITIES,
    out: Annotated[
        Path | None, typer.Option(help="CSV file for all scores; RUN/robustness.csv is where report looks.")
    ] = None,
    num_segments: Segments = None,
    size: Size = None,
    class_order: ClassOrder = None,
    manifest: ManifestOption = None,
    batch_size: Annotated[int, typer.Option(help="Clips at once on each device.")] = 32,
    device: Device = None,
    threads: Threads = 2,
    trust_checkpoint: Trust = False,
) -> None:
    """Top-1 on the validation videos under ImageNet-C's corruptions, each the mean over severities."""
    from taf_fast.run.robustness import robustness as run
    from taf_fast.run.robustness import summary

    for name in corruption:
        if name not in NAMES:
            raise RunError(f"corruption must be one of {', '.join(NAMES)}, got {name!r}")
    for value in severity:
        if value not in SEVERITIES:
            raise RunError(f"severity must be between 1 and 5, got {value}")
    require_folder(out)
    options = dict(
        num_segments=num_segments,
        size=size,
        class_order=class_order,
        manifest=manifest,
        batch_size=batch_size,
        threads=threads,
        trust_checkpoint=trust_checkpoint,
    )
    # All of them before the first is scored: that can take hours.
    opened = {path: open_trained(data, path, device_of(device), **options) for path in checkpoint}
    rows, summaries, quarantined = [], {}, {}
    try:
        for path, trained in opened.items():
            scores = run(
                trained.model,
                trained.loader,
                trained.device,
                tuple(dict.fromkeys(corruption)),
                tuple(dict.fromkeys(severity)),
            )
            summaries[str(path)] = summary(scores)
            rows += [{"checkpoint": path} | row for row in scores]
            if out is not None and ranks.first():
                write_csv(out, rows)
            quarantined |= ranks.union(trained.loader.quarantined)
    finally:
        if summaries:
            print_summaries(summaries)
    for name, reason in quarantined.items():
        print(f"left out {name}: {reason}")


def print_summaries(summaries: dict[str, dict[str, float]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title="top-1 %", box=box.SIMPLE)
    table.add_column("checkpoint", overflow="fold")
    for name in next(iter(summaries.values())):
        table.add_column(name.replace("_", "\n"), justify="right", no_wrap=True)
    for path, scores in summaries.items():
        table.add_row(path, *(f"{100 * value:.1f}" for value in scores.values()))
    Console(width=max(130, Console().width)).print(table)
