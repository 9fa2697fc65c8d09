"""All that runs show, on one page."""

from pathlib import Path
from typing import Annotated

import typer

from .app import app
from .options import require_folder


@app.command()
def report(
    run: Annotated[list[Path], typer.Argument(help="Folders of finetune, or of sweep.")],
    out: Annotated[Path, typer.Option(help="HTML file.")],
) -> None:
    """Write one HTML page of tables, curves, pictures and settings, each run compared with the first."""
    from taf_fast.report.page import write_page

    require_folder(out)
    write_page(out, run)
    print(f"wrote {out}")
