"""Scores of trained models on corrupted videos."""

from pathlib import Path
from typing import Annotated

import typer

from taf_fast.cli.app import app
from taf_fast.cli.options import BatchedOptions, find_weights, require_writable, with_trained_options
from taf_fast.corruptions import NAMES, SEVERITIES
from taf_fast.errors import RunError
from taf_fast.plain import printable, say
from taf_fast.process import ranks
from taf_fast.run.config import DATA, MODEL


@app.command()
@with_trained_options("options")
def robustness(
    checkpoint: Annotated[
        list[Path],
        typer.Option(
            help="Weights, as for evaluate; repeat to compare.", rich_help_panel=MODEL, callback=find_weights
        ),
    ],
    options: BatchedOptions,
    corruption: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Corruption to score; repeatable. Default: all, {', '.join(NAMES)}.",
            rich_help_panel=DATA,
        ),
    ] = None,
    severity: Annotated[
        list[int] | None,
        typer.Option(help="Severity, from 1 to 5; repeatable. Default: all.", rich_help_panel=DATA),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="CSV file for all scores; RUN/robustness.csv is where report looks.")
    ] = None,
) -> None:
    """Top-1 on the validation videos under ImageNet-C's corruptions, each the mean over severities."""
    from taf_fast.measure.robustness import ROBUSTNESS, summary
    from taf_fast.measure.robustness import robustness as run

    corruptions = tuple(dict.fromkeys(corruption or NAMES))
    severities = tuple(dict.fromkeys(severity or SEVERITIES))
    for name in corruptions:
        if name not in NAMES:
            raise RunError(f"corruption must be one of {', '.join(NAMES)}, got {name!r}")
    for value in severities:
        if value not in SEVERITIES:
            raise RunError(f"severity must be between 1 and 5, got {value}")
    require_writable(out)
    # All of them before the first is scored, which can take hours.
    opened = {path: options.open(path) for path in checkpoint}
    rows: dict[str, list[dict]] = {}
    quarantined: dict[str, str] = {}
    try:
        for path, trained in opened.items():
            rows[str(path)] = run(
                trained.model,
                trained.loader,
                trained.device,
                corruptions,
                severities,
            )
            if out is not None and ranks.first():
                ROBUSTNESS.write(out, rows)
            quarantined |= ranks.union(trained.loader.quarantined)
    finally:
        if rows:
            print_summaries({path: summary(scores) for path, scores in rows.items()})
    for name, reason in quarantined.items():
        say(f"left out {name}: {reason}")


def print_summaries(summaries: dict[str, dict[str, float]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title="top-1 %", box=box.SIMPLE)
    table.add_column("checkpoint", overflow="fold")
    for name in next(iter(summaries.values())):
        table.add_column(name.replace("_", "\n"), justify="right", no_wrap=True)
    for path, scores in summaries.items():
        table.add_row(printable(path), *(f"{100 * value:.1f}" for value in scores.values()))
    # A path is text, not markup.
    Console(width=max(130, Console().width), markup=False, emoji=False).print(table)
