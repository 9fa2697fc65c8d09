"""Data sets: writing a synthetic one, scanning one."""

from pathlib import Path
from typing import Annotated

import typer

from taf_fast.cli.app import app
from taf_fast.cli.options import Data
from taf_fast.errors import RunError
from taf_fast.plain import say


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
    say(f"wrote {out}")


@app.command("scan")
def scan_command(
    data: Data,
    manifest: Annotated[
        Path | None,
        typer.Option(help="File for the results. Default: taf_fast_manifest.jsonl in --data."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Number of processes. Default: the CPUs that may be used.", min=1, max=1024),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Then write all frames as JPEG into this folder, a data set for the other commands."
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Write nothing; name the clips that changed and exit with status 1 if any did."
        ),
    ] = False,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Read containers only: faster, but damaged frames are not found."),
    ] = False,
) -> None:
    """Decode every clip once, find the bad ones, and save finetune, evaluate and attention the same work."""
    from taf_fast.cli import scan as run
    from taf_fast.cli.scan import cache as write_cache
    from taf_fast.data import usable_cpus

    workers = workers or usable_cpus()
    if verify:
        if cache is not None:
            raise RunError("--verify writes nothing: give the folder of a cache as --data to verify it")
        if not run.verify(data, manifest, workers):
            raise typer.Exit(1)
        return
    run.scan(data, manifest, workers, quick)
    if cache is not None:
        write_cache(data, manifest, cache, workers)
