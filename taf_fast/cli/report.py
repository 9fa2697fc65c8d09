"""The report: one page about several runs."""

from pathlib import Path
from typing import Annotated

import typer

from taf_fast.cli.app import app
from taf_fast.cli.options import require_writable
from taf_fast.plain import say


@app.command()
def report(
    run: Annotated[list[Path], typer.Argument(help="Folders of runs or of sweeps, or that hold these.")],
    out: Annotated[Path, typer.Option(help="HTML file to write.")],
) -> None:
    """Write one HTML page of tables, curves, pictures and settings, each run compared with the first."""
    from taf_fast.report.page import write_page

    require_writable(out)
    write_page(out, run)
    say(f"wrote {out}")
