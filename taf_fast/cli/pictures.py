"""The paper's pictures, each with a CSV file of the numbers in it."""

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taf_fast.cli.app import app
from taf_fast.cli.options import (
    BatchedOptions,
    Data,
    TrainedOptions,
    find_weights,
    option,
    png_and_csv,
    require_writable,
    with_trained_options,
)
from taf_fast.errors import RunError
from taf_fast.plain import printable, say
from taf_fast.process import ranks
from taf_fast.report.names import short_names
from taf_fast.run.config import DATA, MODEL, FinetuneConfig
from taf_fast.sweep.stats import half_interval

if TYPE_CHECKING:
    from taf_fast.measure.evaluate import Prediction


Out = Annotated[
    Path,
    typer.Option(
        help="PNG file; the numbers go into a CSV file of the same name.", callback=png_and_csv("--out")
    ),
]


@app.command()
@with_trained_options("options")
def attention(
    checkpoint: Annotated[
        list[Path],
        typer.Option(
            help="Weights, as for evaluate; repeat to compare.", rich_help_panel=MODEL, callback=find_weights
        ),
    ],
    options: BatchedOptions,
    out: Annotated[
        Path | None,
        typer.Option(
            help="PNG file of strips; their numbers go into a CSV file of the same name.",
            callback=png_and_csv("--out"),
        ),
    ] = None,
    clip: Annotated[
        list[str] | None,
        typer.Option(help="Id of a validation video; repeatable. Default: the first.", rich_help_panel=DATA),
    ] = None,
    measure: Annotated[
        Path | None,
        typer.Option(help="CSV file: how attention spreads over the frames of every validation video."),
    ] = None,
) -> None:
    """Draw frames of clips with each model's Grad-CAM of the true class, and measure how it is spread."""
    from taf_fast.measure.attention import ATTENTION
    from taf_fast.report.attended import attended_clip
    from taf_fast.report.figures import save
    from taf_fast.report.strips import strip_rows, strips_figure

    if out is None and measure is None:
        raise RunError("nothing to do: give --out for a picture, --measure for numbers, or both")
    require_writable(measure)
    if out is not None and measure is not None and measure.resolve() == out.resolve().with_suffix(".csv"):
        raise RunError(f"--measure must not be {measure}: the numbers of --out go there")
    # A run's weights go by the name of its folder.
    names = short_names([path.resolve().parent for path in checkpoint])
    if len(set(names)) < len(names):
        names = short_names(checkpoint)
    models = {name: options.open(path) for name, path in zip(names, checkpoint, strict=True)}
    if out is not None:
        strips = [attended_clip(models, id) for id in clip or [None]]
        if ranks.first():
            save(strips_figure(strips), [row for strip in strips for row in strip_rows(strip)], out)
        say(f"wrote {out}")
    if measure is not None:
        rows = {
            name: ATTENTION.rows(trained.model, trained.loader, trained.device)
            for name, trained in models.items()
        }
        if ranks.first():
            ATTENTION.write(measure, rows)
        print_spread(rows)
        say(f"wrote {measure}")


def print_spread(rows: dict[str, list[dict]]) -> None:
    """Print the means over each model's rows, with half of their 95 % confidence intervals, and its number of
    videos without attention."""
    from taf_fast.measure.attention import without_attention

    rows = {printable(name): measured for name, measured in rows.items()}
    width = max(len(name) for name in ("checkpoint", *rows))
    say(f"{'checkpoint':{width}}  videos  without  {'entropy':17}  top-frame share")
    for name, measured in rows.items():
        entropy, top = (_mean_and_interval([row[c] for row in measured]) for c in ("entropy", "top_share"))
        say(f"{name:{width}}  {len(measured):6}  {without_attention(measured):7}  {entropy:17}  {top}")


def _mean_and_interval(values: list[float]) -> str:
    half = half_interval(values)
    return f"{statistics.fmean(values):.4f}" + ("" if half is None else f" ± {half:.4f}")


@app.command()
@with_trained_options("options", TrainedOptions)
def perturbations(
    checkpoint: Annotated[
        Path,
        typer.Option(help="Weights, as for evaluate.", rich_help_panel=MODEL, callback=find_weights),
    ],
    out: Out,
    options: TrainedOptions,
    clip: Annotated[
        str | None,
        typer.Option(help="Id of a validation video. Default: the first.", rich_help_panel=DATA),
    ] = None,
    epsilon: Annotated[float, option("epsilon")] = FinetuneConfig.epsilon,
    step_size: Annotated[float, option("step_size")] = FinetuneConfig.step_size,
    steps: Annotated[int, option("steps")] = FinetuneConfig.steps,
) -> None:
    """Draw a clip, clean and after the cross-entropy attack and temporal augmentation, with its Grad-CAM."""
    from taf_fast.augment import CrossEntropyAugment, TemporalAugment
    from taf_fast.measure.perturbations import perturb, perturbation_rows
    from taf_fast.report.figures import save
    from taf_fast.report.perturbations import perturbations_figure, setting
    from taf_fast.report.strips import seen
    from taf_fast.run.trained import load_clip, taken_frames

    try:
        augments = {
            "cross-entropy attack": CrossEntropyAugment(epsilon=epsilon, step_size=step_size, steps=steps),
            "temporal augmentation": TemporalAugment(epsilon=epsilon, step_size=step_size, steps=steps),
        }
    except ValueError as error:
        raise RunError(str(error)) from None
    trained = options.open(checkpoint)
    batch = load_clip(trained.loader, clip)
    on_device = (batch.clips.to(trained.device), batch.labels.to(trained.device))
    pixels, maps, scores = perturb(trained.model, *on_device, augments)
    classes, (id,), (label,) = trained.dataset.classes, batch.ids, batch.labels.tolist()
    found = {kind: seen(maps[kind], scores[kind], label, classes) for kind in maps}
    title = f"clip {id}: {setting(epsilon, step_size, steps)}"
    if ranks.first():
        frames = taken_frames(trained.loader, id)
        figure = perturbations_figure(pixels, found, classes[label], frames, title)
        attack = {"epsilon": epsilon, "step_size": step_size, "steps": steps}
        rows = [
            row
            | {"class": classes[label], "predicted": found[row["kind"]].predicted}
            | {"score": found[row["kind"]].score, "true_score": found[row["kind"]].true_score}
            | {"video_frame": frames[row["frame"]]}
            | attack
            for row in perturbation_rows(pixels, maps)
        ]
        save(figure, rows, out)
    say(f"wrote {out}")


@app.command()
def classes(
    before: Annotated[
        Path, typer.Argument(help="Folder of a run, or a file that evaluate --predictions wrote.")
    ],
    after: Annotated[Path, typer.Argument(help="Another run or file, on the same clips.")],
    data: Data,
    out: Out,
    long_term: Annotated[
        Path | None,
        typer.Option(
            help="Text file of long-term classes, one a line. Default: the paper's, which are of "
            "Something-Something V1 and V2, and those of the synthetic set."
        ),
    ] = None,
) -> None:
    """Draw how the top-1 of every class changed from one model to another.

    Classes of the paper's Table 5 are listed next to its numbers.
    """
    from rich.console import Console

    from taf_fast.data import read_dataset
    from taf_fast.report.classes import class_rows, class_summary, classes_figure
    from taf_fast.report.figures import save
    from taf_fast.report.paper import beside_table_5

    names = read_dataset(data, "validation").classes
    rows = class_rows(names, _predictions(before), _predictions(after), _long_term(long_term, names))
    if ranks.first():
        save(classes_figure(rows), rows, out)
        if (compared := beside_table_5(rows)).row_count:
            Console().print(compared)
    say(class_summary(rows))
    say(f"wrote {out}")


def _predictions(path: Path) -> "list[Prediction]":
    from taf_fast.measure.evaluate import read_predictions
    from taf_fast.run.folder import RunFolder

    return read_predictions(RunFolder(path).predictions if path.is_dir() else path)


def _long_term(path: Path | None, classes: tuple[str, ...]) -> list[str]:
    from taf_fast.report.paper import long_term_classes

    if path is None:
        return long_term_classes(classes)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read as a text file of class names: {error}") from None
    return [line.strip() for line in lines if line.strip()]


@app.command()
def curves(
    run: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    out: Out,
) -> None:
    """Draw the training and the validation loss of runs over their epochs."""
    from taf_fast.report.curves import curves_figure, loss_rows
    from taf_fast.report.figures import save
    from taf_fast.run.folder import RunFolder

    rows = loss_rows({name: RunFolder(folder) for name, folder in zip(short_names(run), run, strict=True)})
    if ranks.first():
        save(curves_figure(rows), rows, out)
    say(f"wrote {out}")
