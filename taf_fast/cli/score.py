"""Scores of trained models."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taf_fast.cli.app import app
from taf_fast.cli.options import (
    BatchedOptions,
    find_weights,
    png_and_csv,
    require_different,
    require_writable,
    with_trained_options,
)
from taf_fast.errors import RunError
from taf_fast.files import write_csv, write_json
from taf_fast.plain import say
from taf_fast.process import ranks
from taf_fast.run.config import DATA, MODEL

if TYPE_CHECKING:
    from taf_fast.measure.evaluate import Evaluation


@app.command()
@with_trained_options("options")
def evaluate(
    checkpoint: Annotated[
        Path,
        typer.Option(
            callback=find_weights,
            help="Weights to score: of finetune, of the official TSM, GST, TAM and TPN, or of MMAction2.",
            rich_help_panel=MODEL,
        ),
    ],
    options: BatchedOptions,
    crops: Annotated[
        int,
        typer.Option(
            help="Square crops per clip: 1, the centre, or 3, as large as the short side, scaled by 256/224.",
            rich_help_panel=DATA,
        ),
    ] = 1,
    clips: Annotated[
        int,
        typer.Option(help="Clips per video: 1, or the 2 of the model's official test.", rich_help_panel=DATA),
    ] = 1,
    split: Annotated[
        str,
        typer.Option(help="Videos to score: validation, or train in the same view.", rich_help_panel=DATA),
    ] = "validation",
    out: Annotated[Path | None, typer.Option(help="JSON file for the scores.")] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="CSV file for the prediction of every video, as a run's predictions.csv; the meaning of its "
            "columns goes to a .columns.txt file of the same name."
        ),
    ] = None,
    per_class: Annotated[
        Path | None, typer.Option(help="CSV file for the top-1, top-5 and precision of every class.")
    ] = None,
    confusion: Annotated[
        Path | None,
        typer.Option(
            help="PNG file for the confusion matrix; its counts go into a CSV file of the same name.",
            callback=png_and_csv("--confusion"),
        ),
    ] = None,
) -> None:
    """Top-1, top-5 and loss on a split's videos, from the mean logits of all crops and clips."""
    from taf_fast.data import EvaluationViews
    from taf_fast.measure.evaluate import columns_of
    from taf_fast.run.evaluate import judge

    files = [out, predictions, per_class, confusion]
    files += [columns_of(predictions)] if predictions else []
    files += [confusion.with_suffix(".csv")] if confusion else []
    require_different(*files)
    require_writable(*files)
    try:
        views = EvaluationViews(crops, clips)
    except ValueError as error:
        raise RunError(str(error)) from None
    trained = options.open(checkpoint, views=views, split=split)
    found = judge(trained)
    rows = found.by_class()
    if ranks.first():
        if out is not None:
            values = dataclasses.asdict(found.scores) | {"mean_class_accuracy": found.mean_class_accuracy}
            write_json(out, values | {"quarantined": found.left_out})
        if predictions is not None:
            found.write_predictions(predictions)
        if per_class is not None:
            write_csv(per_class, rows)
        if confusion is not None:
            from taf_fast.report.confusion import confusion_figure, confusion_rows
            from taf_fast.report.figures import save

            matrix = found.confusion_matrix()
            save(confusion_figure(matrix, found.classes), confusion_rows(matrix, found.classes), confusion)
    print_scores(found.scores)
    counted = [row for row in rows if row["clips"]]
    say(f"mean class accuracy {100 * found.mean_class_accuracy:.2f} % ({len(counted)} classes)")
    for name, reason in found.left_out.items():
        say(f"left out {name}: {reason}")


def print_scores(scores: "Evaluation") -> None:
    say(
        f"top-1 {100 * scores.top1:.2f} %  top-5 {100 * scores.top5:.2f} %  "
        f"loss {scores.loss:.4f}  ({scores.clips} videos)"
    )
