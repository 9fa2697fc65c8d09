"""Data sets: writing a synthetic one, looking at one."""

import os
from pathlib import Path
from typing import Annotated

import typer

from taf_fast.run.config import RunError

from .app import app
from .options import Data


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(help="New or empty folder.")],
    format: Annotated[str, typer.Option(help="ssv2 (webm), ssv1 (JPEG frames) or diving48 (mp4).")] = "ssv2",
    train_per_class: int = 60,
    val_per_class: int = 25,
    seed: int = 0,
) -> None:
    """Write a synthetic data set in a real one's format, told apart by time alone."""
    from taf_fast.data.synth import write

    try:
        write(out, train_per_class=train_per_class, val_per_class=val_per_class, seed=seed, format=format)
    except (FileExistsError, ValueError) as error:
        raise RunError(str(error)) from None
    print(f"wrote {out}")


@app.command("scan")
def scan_command(
    data: Data,
    manifest: Annotated[
        Path | None,
        typer.Option(help="File to keep what is seen in. Default: taf_fast_manifest.jsonl in --data."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that look. Default: one per CPU.", min=1)
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Then decode all clips into this folder, which is a data set to the other commands."
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Write nothing; name the clips that changed and exit with status 1 if any did."
        ),
    ] = False,
) -> None:
    """Look at every clip once: what finetune, evaluate and attention then need not do again."""
    from taf_fast.run import scan as run
    from taf_fast.run.cache import cache as write_cache

    workers = workers or os.cpu_count() or 1
    if verify:
        if cache is not None:
            raise RunError("--verify writes nothing: give the folder of a cache as --data to verify it")
        if not run.verify(data, manifest, workers):
            raise typer.Exit(1)
        return
    run.scan(data, manifest, workers)
    if cache is not None:
        write_cache(data, manifest, cache, workers)
