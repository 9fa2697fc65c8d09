"""Training: the demo, fine-tuning, and the recipes."""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from taf_fast.cli.app import app
from taf_fast.cli.options import Trust, machine_of, require_writable, with_run_values
from taf_fast.cli.score import print_scores
from taf_fast.errors import RunError
from taf_fast.files import make_folder, require_data_folder
from taf_fast.plain import say
from taf_fast.precision import best_precision
from taf_fast.process import ranks
from taf_fast.run.config import FIELDS, RUN, FinetuneConfig
from taf_fast.run.recipes import NAMES, read_recipe
from taf_fast.run.values import declaration

#: The values of a run that are options of finetune.
OPTIONS = tuple(name for name, field in FIELDS.items() if declaration(field).option != "")
# What says where the weights come from.
_WEIGHTS = ("checkpoint", "class_order", "imagenet")


@app.command()
def demo(out: Annotated[Path, typer.Option(help="Folder to work in.")] = Path("runs/demo")) -> None:
    """Synthetic videos, a baseline, plain fine-tuning and TAF: the main job in a few minutes."""
    from taf_fast.cli.demo import demo as run_demo

    run_demo(out)


@app.command()
@with_run_values("given", OPTIONS)
def finetune(
    *,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Values of a run: one of taf-fast recipes, a YAML file, or the config.yaml of another run. "
            "Options override it.",
            rich_help_panel=RUN,
        ),
    ] = None,
    given: dict[str, Any],
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the state in --out, if there is one.", rich_help_panel=RUN),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Begin no run: draw the first batch into OUT.png, and measure one step of it.",
            rich_help_panel=RUN,
        ),
    ] = False,
    trust_checkpoint: Trust = False,
) -> None:
    """Fine-tune a checkpoint with TAF or plainly, or train a model from scratch.

    An option that is not given has its value from the recipe, or else the default shown here.
    """
    from taf_fast.run.finetune import finetune as run
    from taf_fast.run.folder import RunFolder
    from taf_fast.run.trained import describe

    values = {} if recipe is None else read_recipe(recipe)
    if given.keys() & {"checkpoint", "imagenet"}:  # in place of those of the run that is the recipe
        # Another checkpoint may have the right classifier, so a new one has to be asked for again.
        replaced = {*_WEIGHTS, "new_head"} if "checkpoint" in values else _WEIGHTS
        values = {name: value for name, value in values.items() if name not in replaced}
    if "data" not in values | given:
        raise RunError("--data is missing: the folder of the data set must be given")
    require_data_folder(Path((values | given)["data"]))
    if "out" not in given:
        if recipe is None or "data" in values:
            raise RunError("--out is missing: without a recipe for any data the run's folder must be given")
        given["out"] = Path("runs") / Path(recipe).stem
    given = machine_of(given)
    values = {"precision": best_precision(torch.device(given["device"]))} | values
    # Describing a checkpoint can mean reading all of it.
    open_questions = {"model", "num_segments", "size"} - set(values | given)
    known = (
        describe(given["checkpoint"], trust_checkpoint) if "checkpoint" in given and open_questions else {}
    )
    config = FinetuneConfig(**known | values | given)
    if dry_run:
        if resume:
            raise RunError("--dry-run begins a run and leaves none: it cannot --resume one")
        _dry_run(config, trust_checkpoint)
        return
    result = run(config, resume=resume, trust_checkpoint=trust_checkpoint)
    if result is not None:
        print_scores(result.evaluation)
        say(f"weights: {result.weights}")
        if result.best is not None:
            say(f"best {result.best.measure}: epoch {result.best.epoch + 1}, in {RunFolder(config.out).best}")


def _dry_run(config: FinetuneConfig, trust_checkpoint: bool) -> None:
    from taf_fast.report.figures import save_picture
    from taf_fast.report.sheet import sheet_figure
    from taf_fast.run.finetune import dry_run

    picture = config.out if config.out.suffix == ".png" else Path(f"{config.out}.png")
    make_folder(picture.parent)
    require_writable(picture)
    found = dry_run(config, trust_checkpoint)
    if not ranks.first():
        return
    save_picture(sheet_figure(found.clips, found.labels, found.ids), picture)
    say(f"wrote {picture}")
    say(f"loss {found.loss:.3f} on {len(found.ids)} clips")
    memory_of = "the process" if found.device.type == "cpu" else f"GPU {found.device}"
    say(f"memory: at most {found.memory / 2**30:.2f} GiB of {memory_of}")
    say(f"a step takes {found.step_seconds:.2f} s, loading its clips {found.load_seconds:.2f} s")
    say(
        f"an epoch has {found.steps} steps and takes about {_duration(found.epoch_seconds)}, validation aside"
    )


def _duration(seconds: float) -> str:
    for size, unit in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


@app.command()
def recipes() -> None:
    """List the recipes: each is a model on a data set of the paper's Table 1."""
    for name in NAMES:
        values = read_recipe(name)
        say(f"{name:24} {values['model']}, {values['num_segments']} frames, {values['dataset']}")
