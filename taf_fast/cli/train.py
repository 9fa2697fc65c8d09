"""Training: the demo, fine-tuning, and the values it starts from."""

from pathlib import Path
from typing import Annotated

import typer

from taf_fast.run.config import METHODS, FinetuneConfig, RunError
from taf_fast.run.recipes import NAMES, read_recipe
from taf_fast.run.trained import describe

from .app import app
from .options import DEFAULT, ClassOrder, Data, Device, ManifestOption, Threads, Trust, device_of
from .score import print_scores


@app.command()
def demo(out: Annotated[Path, typer.Option(help="Folder to work in.")] = Path("runs/demo")) -> None:
    """Synthetic videos, a baseline, plain fine-tuning and TAF: the main job in a few minutes."""
    from taf_fast.demo import demo as run_demo

    run_demo(out)


def _value(name: str, help: str | None = None, *flags: str):
    """An option of a run whose default is the recipe's value, or that of the configuration."""
    default = DEFAULT[name]
    shown = ", ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return typer.Option(*flags, help=help, show_default=shown)


@app.command()
def finetune(
    data: Data,
    recipe: Annotated[
        str | None, typer.Option(help="The paper's values by name, or a YAML file; see taf-fast recipes.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. Default: runs/RECIPE.")] = None,
    manifest: ManifestOption = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Weights to start from, of finetune, of the official TSM, GST, TAM and TPN or of MMAction2. "
            "Default: none, train from scratch."
        ),
    ] = None,
    class_order: ClassOrder = None,
    imagenet: Annotated[
        Path | None, typer.Option(help="torchvision's ResNet weights to train a new model from.")
    ] = None,
    augment: Annotated[
        str | None,
        _value(
            "augment",
            "ta (TAF), none (plain fine-tuning), or what TA is compared with: ce, noise, advprop, mixup, "
            "cutmix, framemixup, cubemixup.",
        ),
    ] = None,
    method: Annotated[str | None, typer.Option(hidden=True, help="Earlier name: taf or plain.")] = None,
    model: Annotated[str | None, typer.Option(help="Default: the recipe's or the checkpoint's.")] = None,
    num_segments: Annotated[
        int | None, typer.Option(help="Frames per clip, T. Default: as for model.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Side of the crops in pixels. Default: as for model.")
    ] = None,
    epochs: Annotated[int | None, _value("epochs")] = None,
    batch_size: Annotated[int | None, _value("batch_size", "Clips per step, of all GPUs together.")] = None,
    lr: Annotated[float | None, _value("lr")] = None,
    lr_step: Annotated[
        list[int] | None,
        _value("lr_steps", "Epoch from which lr is a tenth of what it was; may be repeated.", "--lr-step"),
    ] = None,
    momentum: Annotated[float | None, _value("momentum")] = None,
    weight_decay: Annotated[float | None, _value("weight_decay")] = None,
    clip_grad: Annotated[float | None, _value("clip_grad", "Largest total L2 norm.")] = None,
    fc_lr5: Annotated[
        bool | None,
        _value("fc_lr5", "Classifier's rate times 5: a new one on a trained trunk.", "--fc-lr5/--no-fc-lr5"),
    ] = None,
    dropout: Annotated[float | None, typer.Option(help="Default: the recipe's or the model's.")] = None,
    alpha: Annotated[float | None, _value("alpha", "Weight of the clean loss.")] = None,
    composition: Annotated[
        str | None, _value("composition", "Clips to attack: those classified wrong, correct, or all.")
    ] = None,
    epsilon: Annotated[float | None, _value("epsilon", "In pixels of range [0,1].")] = None,
    step_size: Annotated[float | None, _value("step_size", "In pixels of range [0,1].")] = None,
    steps: Annotated[int | None, _value("steps", "Attack steps, K.")] = None,
    num_frames: Annotated[
        int | None, typer.Option(help="Least attended frames to raise, N. Default: the recipe's, or all T.")
    ] = None,
    gradient: Annotated[
        str | None, _value("gradient", "Of what the CAM is: loss, as in Eq. 2, or logit, of the other sign.")
    ] = None,
    denominator: Annotated[str | None, _value("denominator", "Eq. 3: max or range.")] = None,
    attack_bn: Annotated[
        str | None, _value("attack_bn", "Batch statistics in the attack: frozen or batch.")
    ] = None,
    seed: Annotated[int | None, _value("seed")] = None,
    device: Device = None,
    compile: Annotated[bool | None, typer.Option(help="torch.compile. Default: on a GPU only.")] = None,
    precision: Annotated[str | None, _value("precision", "Of training: float32 or bfloat16.")] = None,
    decoder: Annotated[str | None, _value("decoder", "pyav, dali or, on a GPU, mixed.")] = None,
    threads: Threads = DEFAULT["threads"],
    checkpoint_every: Annotated[int, typer.Option(help="Steps.")] = DEFAULT["checkpoint_every"],
    quarantine_limit: Annotated[
        float, typer.Option(help="Fraction of unreadable clips that stops the run.")
    ] = DEFAULT["quarantine_limit"],
    resume: Annotated[bool, typer.Option(help="Go on from the state in --out, if there is one.")] = False,
    trust_checkpoint: Trust = False,
) -> None:
    """Fine-tune a checkpoint with TAF, or plainly; or train one from scratch."""
    from taf_fast.run.finetune import finetune as run

    given = {name: value for name, value in locals().items() if name in DEFAULT and value is not None}
    if method is not None:
        if method not in METHODS:
            raise RunError(f"method must be taf or plain, got {method!r}; --augment has more")
        given["augment"] = METHODS[method]
    if lr_step:
        given["lr_steps"] = tuple(lr_step)
    if out is None:
        if recipe is None:
            raise RunError("--out is missing: without --recipe the folder of the run must be given")
        given["out"] = Path("runs") / Path(recipe).stem
    given |= {
        name: str(given[name])
        for name in ("data", "out", "manifest", "checkpoint", "imagenet")
        if name in given
    }
    given["device"] = str(device_of(device))
    given.setdefault("compile", given["device"].startswith("cuda"))
    values = {} if recipe is None else read_recipe(recipe)
    # Looking into a checkpoint can mean reading all of it.
    open_questions = {"model", "num_segments", "size"} - set(values | given)
    known = describe(checkpoint, trust_checkpoint) if checkpoint is not None and open_questions else {}
    config = FinetuneConfig(**known | values | given)
    result = run(config, resume=resume, trust_checkpoint=trust_checkpoint)
    if result is not None:
        print_scores(result.evaluation)
        print(f"weights: {result.weights}")


@app.command()
def recipes() -> None:
    """List the recipes: a model and a data set of the paper's Table 1 each."""
    for name in NAMES:
        values = read_recipe(name)
        print(f"{name:24} {values['model']}, {values['num_segments']} frames, {values['dataset']}")
