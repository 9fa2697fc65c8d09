"""The paper's pictures, each beside a CSV of the numbers in it."""

import math
import statistics
from pathlib import Path
from typing import Annotated

import typer

from taf_fast.data import read_dataset
from taf_fast.files import write_csv
from taf_fast.report.names import short_names
from taf_fast.run import ranks
from taf_fast.run.config import FinetuneConfig, RunError
from taf_fast.run.evaluate import Prediction, read_predictions
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


def _png(path: Path | None) -> Path | None:
    require_folder(path)
    if path is not None and path.suffix != ".png":
        raise RunError(f"--out must be a .png file, got {path}")
    return path


Out = Annotated[
    Path, typer.Option(help="PNG file; the numbers go beside it, into a CSV of its name.", callback=_png)
]


@app.command()
def attention(
    data: Data,
    checkpoint: Annotated[
        list[Path], typer.Option(help="Weights, as for evaluate; repeat to compare.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="PNG file of strips; their numbers go beside it, into a CSV.", callback=_png),
    ] = None,
    clip: Annotated[
        list[str] | None, typer.Option(help="Id of a validation video; repeat for more. Default: the first.")
    ] = None,
    measure: Annotated[
        Path | None, typer.Option(help="CSV file: how attention is spread in every validation video.")
    ] = None,
    num_segments: Segments = None,
    size: Size = None,
    class_order: ClassOrder = None,
    manifest: ManifestOption = None,
    batch_size: Annotated[int, typer.Option(help="Clips measured at once.")] = 32,
    device: Device = None,
    threads: Threads = 2,
    trust_checkpoint: Trust = False,
) -> None:
    """Draw frames of clips with each model's Grad-CAM of the true class, and measure how it is spread."""
    from taf_fast.report.attention import attention_rows, strip, strip_rows, strips_figure
    from taf_fast.report.figures import save

    if out is None and measure is None:
        raise RunError("nothing to do: give --out for a picture, --measure for numbers, or both")
    require_folder(measure)
    if out is not None and measure is not None and measure.resolve() == out.resolve().with_suffix(".csv"):
        raise RunError(f"--measure must be another file than {measure}, where the numbers of --out go")
    # A run's weights go by the name of its folder.
    names = short_names([path.resolve().parent for path in checkpoint])
    if len(set(names)) < len(names):
        names = short_names(checkpoint)
    models = {
        name: open_trained(
            data,
            path,
            device_of(device),
            num_segments=num_segments,
            size=size,
            class_order=class_order,
            manifest=manifest,
            batch_size=batch_size,
            threads=threads,
            trust_checkpoint=trust_checkpoint,
        )
        for name, path in zip(names, checkpoint, strict=True)
    }
    if out is not None:
        strips = [strip(models, id) for id in clip or [None]]
        if ranks.first():
            save(strips_figure(strips), [row for s in strips for row in strip_rows(s.id, s.maps)], out)
        print(f"wrote {out}")
    if measure is not None:
        rows = {
            name: attention_rows(trained.model, trained.loader, trained.device)
            for name, trained in models.items()
        }
        if ranks.first():
            write_csv(measure, [{"checkpoint": name} | row for name in rows for row in rows[name]])
        print_spread(rows)
        print(f"wrote {measure}")


def print_spread(rows: dict[str, list[dict]]) -> None:
    """Of every model the means over its rows with their standard errors, and the videos without attention."""
    from taf_fast.report.attention import without_attention

    width = max(len(name) for name in ("checkpoint", *rows))
    print(f"{'checkpoint':{width}}  videos  without  {'entropy':17}  top-frame share")
    for name, measured in rows.items():
        entropy, top = (_mean_and_error([row[c] for row in measured]) for c in ("entropy", "top_share"))
        print(f"{name:{width}}  {len(measured):6}  {without_attention(measured):7}  {entropy:17}  {top}")


def _mean_and_error(values: list[float]) -> str:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.fmean(values):.4f} +- {error:.4f}"


@app.command()
def perturbations(
    data: Data,
    checkpoint: Annotated[Path, typer.Option(help="Weights, as for evaluate.")],
    out: Out,
    clip: Annotated[str | None, typer.Option(help="Id of a validation video. Default: the first.")] = None,
    epsilon: Annotated[float, typer.Option(help="In pixels of range [0,1].")] = FinetuneConfig.epsilon,
    step_size: Annotated[float, typer.Option(help="In pixels of range [0,1].")] = FinetuneConfig.step_size,
    steps: Annotated[int, typer.Option(help="Attack steps, K.")] = FinetuneConfig.steps,
    num_segments: Segments = None,
    size: Size = None,
    class_order: ClassOrder = None,
    manifest: ManifestOption = None,
    device: Device = None,
    trust_checkpoint: Trust = False,
) -> None:
    """Draw a clip, clean and after the cross-entropy attack and temporal augmentation, with its Grad-CAM."""
    from taf_fast.augment import CrossEntropyAugment, TemporalAugment
    from taf_fast.report.attention import load_clip
    from taf_fast.report.figures import save
    from taf_fast.report.perturbations import perturb, perturbation_rows, perturbations_figure

    options = dict(epsilon=epsilon, step_size=step_size, steps=steps)
    try:
        augments = {
            "cross-entropy attack": CrossEntropyAugment(**options),
            "temporal augmentation": TemporalAugment(**options),
        }
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
        trust_checkpoint=trust_checkpoint,
    )
    batch = load_clip(trained.loader, clip)
    on_device = (batch.clips.to(trained.device), batch.labels.to(trained.device))
    pixels, maps = perturb(trained.model, *on_device, augments)
    title = f"{batch.ids[0]}: {trained.dataset.classes[batch.labels[0]]}"
    if ranks.first():
        save(perturbations_figure(pixels, maps, title), perturbation_rows(pixels, maps), out)
    print(f"wrote {out}")


@app.command()
def classes(
    before: Annotated[Path, typer.Argument(help="Folder of a run, or a file of evaluate --predictions.")],
    after: Annotated[Path, typer.Argument(help="Another, of the same clips.")],
    data: Data,
    out: Out,
    long_term: Annotated[
        Path | None,
        typer.Option(
            help="File with a class a line. Default: the synthetic set's and those of report/paper.yaml."
        ),
    ] = None,
) -> None:
    """Draw how the top-1 of every class changed from one model to another."""
    from taf_fast.report.classes import class_rows, class_summary, classes_figure
    from taf_fast.report.figures import save

    names = read_dataset(data, "validation").classes
    rows = class_rows(names, _predictions(before), _predictions(after), _long_term(long_term, names))
    if ranks.first():
        save(classes_figure(rows), rows, out)
    print(class_summary(rows))
    print(f"wrote {out}")


def _predictions(path: Path) -> list[Prediction]:
    return read_predictions(path / "predictions.csv" if path.is_dir() else path)


def _long_term(path: Path | None, classes: tuple[str, ...]) -> list[str]:
    from taf_fast.report.paper import long_term_classes

    if path is None:
        return long_term_classes(classes)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is no file of class names: {error}") from None
    return [line.strip() for line in lines if line.strip()]


@app.command()
def curves(
    run: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    out: Out,
) -> None:
    """Draw the training and the validation loss of runs over their epochs."""
    from taf_fast.report.curves import curves_figure, loss_rows
    from taf_fast.report.figures import save

    rows = loss_rows(
        {name: folder / "metrics.jsonl" for name, folder in zip(short_names(run), run, strict=True)}
    )
    if ranks.first():
        save(curves_figure(rows), rows, out)
    print(f"wrote {out}")
