"""Scores of trained models."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from taf_fast.data import EvaluationViews
from taf_fast.files import write_text
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
def evaluate(
    data: Data,
    checkpoint: Annotated[
        Path, typer.Option(help="Weights of finetune, of the official TSM, GST, TAM and TPN or of MMAction2.")
    ],
    num_segments: Segments = None,
    size: Size = None,
    crops: Annotated[
        int, typer.Option(help="1: the centre. 3: squares of the whole short side, larger by 256/224.")
    ] = 1,
    clips: Annotated[int, typer.Option(help="1, or the 2 of the model's official test.")] = 1,
    class_order: ClassOrder = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the scores.")] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="CSV file for every video's, as a run's predictions.csv.")
    ] = None,
    manifest: ManifestOption = None,
    batch_size: Annotated[int, typer.Option(help="Clips at once on each device, with their crops.")] = 32,
    device: Device = None,
    threads: Threads = 2,
    trust_checkpoint: Trust = False,
) -> None:
    """Top-1, top-5 and loss on the validation videos, by the mean logits of their crops and clips."""
    from taf_fast.run.evaluate import predict, score, write_predictions

    require_folder(out, predictions)
    try:
        views = EvaluationViews(crops, clips)
    except ValueError as error:
        raise RunError(str(error)) from None
    trained = open_trained(
        data,
        checkpoint,
        device_of(device),
        num_segments=num_segments,
        size=size,
        class_order=class_order,
        manifest=manifest,
        views=views,
        batch_size=batch_size,
        threads=threads,
        trust_checkpoint=trust_checkpoint,
    )
    predicted = predict(trained.model, trained.loader, trained.device)
    scores = score(predicted)
    print_scores(scores)
    quarantined = ranks.union(trained.loader.quarantined)
    for name, reason in quarantined.items():
        print(f"left out {name}: {reason}")
    if out is not None and ranks.first():
        values = dataclasses.asdict(scores) | {"quarantined": quarantined}
        write_text(out, json.dumps(values))
    if predictions is not None and ranks.first():
        write_predictions(predictions, predicted)


def print_scores(scores) -> None:
    print(
        f"top-1 {100 * scores.top1:.2f} %  top-5 {100 * scores.top5:.2f} %  "
        f"loss {scores.loss:.4f}  ({scores.clips} videos)"
    )
