"""What a model sees in clips."""

from pathlib import Path
from typing import Annotated, Any

import typer

from taf_fast.cli.app import app
from taf_fast.cli.options import (
    Device,
    Threads,
    Trust,
    Workers,
    device_of,
    find_weights,
    option,
    require_writable,
)
from taf_fast.errors import RunError
from taf_fast.files import write_csv, write_json
from taf_fast.plain import say
from taf_fast.run.config import DATA, MACHINE, MODEL


@app.command()
def predict(
    clips: Annotated[
        list[Path],
        typer.Argument(help="Video files, folders of frames, and folders of these.", show_default=False),
    ],
    checkpoint: Annotated[
        Path,
        typer.Option(
            callback=find_weights,
            help="Weights: of finetune, of the official TSM, GST, TAM and TPN, or of MMAction2.",
            rich_help_panel=MODEL,
        ),
    ],
    top: Annotated[int, typer.Option(help="How many classes of each clip.")] = 5,
    out: Annotated[
        Path | None, typer.Option(help="File for all of them: .csv, a row for each class, or .json.")
    ] = None,
    num_segments: Annotated[int | None, option("num_segments", default="the checkpoint's, or 8")] = None,
    size: Annotated[int | None, option("size", default="the checkpoint's, or 224")] = None,
    views_crops: Annotated[
        int,
        typer.Option(
            "--crops",
            help="Square crops per clip: 1, the centre, or 3, as large as the short side, scaled by 256/224.",
            rich_help_panel=DATA,
        ),
    ] = 1,
    views_clips: Annotated[
        int,
        typer.Option(
            "--clips", help="Clips per video: 1, or the 2 of the model's official test.", rich_help_panel=DATA
        ),
    ] = 1,
    batch_size: Annotated[
        int, typer.Option(help="Clips at once, each with all its crops.", rich_help_panel=MACHINE)
    ] = 8,
    device: Device = None,
    workers: Workers = None,
    threads: Threads = None,
    trust_checkpoint: Trust = False,
) -> None:
    """The most probable classes of clips without labels."""
    from taf_fast.data import EvaluationViews
    from taf_fast.run.predict import predict

    if out is not None and out.suffix not in (".csv", ".json"):
        raise RunError(f"{out}: expected a name that ends in .csv or .json")
    require_writable(out)
    try:
        views = EvaluationViews(views_crops, views_clips)
    except ValueError as error:
        raise RunError(str(error)) from None
    found = predict(
        checkpoint,
        clips,
        top,
        num_segments=num_segments,
        size=size,
        views=views,
        batch_size=batch_size,
        workers=workers,
        threads=threads,
        device=device_of(device),
        trust_checkpoint=trust_checkpoint,
    )
    rows: list[dict[str, Any]] = [
        {"clip": guess.clip, "place": place, "class": name, "probability": probability}
        for guess in found.guesses
        for place, (name, probability) in enumerate(zip(guess.classes, guess.probabilities, strict=True), 1)
    ]
    if out is not None and out.suffix == ".csv":
        write_csv(out, rows)
    elif out is not None:
        write_json(out, {"clips": rows, "left_out": found.left_out}, indent=1)
    for row in rows:
        if row["place"] == 1:
            say(row["clip"])
        say(f"  {100 * row['probability']:6.2f} %  {row['class']}")
    for clip, reason in found.left_out.items():
        say(f"left out {clip}: {reason}")
