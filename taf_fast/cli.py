"""The command ``taf-fast``."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from taf_fast.data import ClipLoader, DataError, read_ssv2, scan
from taf_fast.run.checkpoint import load_model, read_info, require_classes
from taf_fast.run.config import FinetuneConfig, RunError
from taf_fast.run.files import write_text

app = typer.Typer(
    help="Temporal Adversarial Fine-tuning of video models.", no_args_is_help=True, add_completion=False
)

Data = Annotated[Path, typer.Option(help="Folder in the Something-Something V2 format.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... Default: cuda if there is one.")]
Trust = Annotated[bool, typer.Option(help="Run the code a torch.save checkpoint may hold.")]
Threads = Annotated[int, typer.Option(help="Threads that decode.")]


def main() -> None:
    """Run the command line; what the user can mend is one line on stderr and exit status 2."""
    try:
        app()
    except (RunError, DataError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


@app.command()
def demo(out: Annotated[Path, typer.Option(help="Folder to work in.")] = Path("runs/demo")) -> None:
    """Synthetic videos, a baseline, plain fine-tuning and TAF: the main job in a few minutes."""
    from taf_fast.demo import demo as run_demo

    run_demo(out)


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(help="New or empty folder.")],
    train_per_class: int = 60,
    val_per_class: int = 25,
    seed: int = 0,
) -> None:
    """Write a synthetic data set in the Something-Something V2 format, told apart by time alone."""
    from taf_fast.data.synth import write_ssv2

    try:
        write_ssv2(out, train_per_class=train_per_class, val_per_class=val_per_class, seed=seed)
    except (FileExistsError, ValueError) as error:
        raise RunError(str(error)) from None
    print(f"wrote {out}")


_DEFAULT = {field.name: field.default for field in dataclasses.fields(FinetuneConfig)}


@app.command()
def finetune(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Weights to start from. Default: none, train from scratch."),
    ] = None,
    method: Annotated[str, typer.Option(help="taf or plain.")] = _DEFAULT["method"],
    model: Annotated[str | None, typer.Option(help="Default: the checkpoint's, or tsm_resnet50.")] = None,
    num_segments: Annotated[
        int | None, typer.Option(help="Frames per clip, T. Default: as for model.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Side of the crops in pixels. Default: as for model.")
    ] = None,
    epochs: int = _DEFAULT["epochs"],
    batch_size: int = _DEFAULT["batch_size"],
    lr: float = _DEFAULT["lr"],
    lr_step: Annotated[
        list[int], typer.Option(help="Epoch from which lr is a tenth of what it was; may be repeated.")
    ] = _DEFAULT["lr_steps"],
    momentum: float = _DEFAULT["momentum"],
    weight_decay: float = _DEFAULT["weight_decay"],
    clip_grad: Annotated[float, typer.Option(help="Largest total L2 norm.")] = _DEFAULT["clip_grad"],
    fc_lr5: Annotated[
        bool, typer.Option("--fc-lr5", help="Classifier's rate times 5: a new one on a trained trunk.")
    ] = _DEFAULT["fc_lr5"],
    dropout: float = _DEFAULT["dropout"],
    alpha: Annotated[float, typer.Option(help="Weight of the clean loss.")] = _DEFAULT["alpha"],
    composition: Annotated[
        str, typer.Option(help="Clips to attack: those classified wrong, correct, or all.")
    ] = _DEFAULT["composition"],
    epsilon: Annotated[float, typer.Option(help="In pixels of range [0,1].")] = _DEFAULT["epsilon"],
    step_size: Annotated[float, typer.Option(help="In pixels of range [0,1].")] = _DEFAULT["step_size"],
    steps: Annotated[int, typer.Option(help="Attack steps, K.")] = _DEFAULT["steps"],
    num_frames: Annotated[
        int | None, typer.Option(help="Least attended frames to raise, N. Default: all T.")
    ] = _DEFAULT["num_frames"],
    denominator: Annotated[str, typer.Option(help="Eq. 3: max or range.")] = _DEFAULT["denominator"],
    attack_bn: Annotated[
        str, typer.Option(help="Batch statistics in the attack: frozen or batch.")
    ] = _DEFAULT["attack_bn"],
    seed: int = _DEFAULT["seed"],
    device: Device = None,
    compile: Annotated[bool | None, typer.Option(help="torch.compile. Default: on a GPU only.")] = None,
    threads: Threads = _DEFAULT["threads"],
    checkpoint_every: Annotated[int, typer.Option(help="Steps.")] = _DEFAULT["checkpoint_every"],
    quarantine_limit: Annotated[
        float, typer.Option(help="Fraction of unreadable clips that stops the run.")
    ] = _DEFAULT["quarantine_limit"],
    resume: Annotated[bool, typer.Option(help="Go on from the state in --out, if there is one.")] = False,
    trust_checkpoint: Trust = False,
) -> None:
    """Fine-tune a checkpoint with TAF, or plainly; or train one from scratch."""
    from taf_fast.run.finetune import finetune as run

    options = {name: value for name, value in locals().items() if name in _DEFAULT}
    known = None if checkpoint is None else read_info(checkpoint)
    for name in ("model", "num_segments", "size"):
        if options[name] is None:
            options[name] = _DEFAULT[name] if known is None else getattr(known, name)
    options["data"], options["out"] = str(data), str(out)
    options["checkpoint"] = None if checkpoint is None else str(checkpoint)
    options["lr_steps"] = tuple(lr_step)
    options["device"] = str(_device(device))
    options["compile"] = options["device"].startswith("cuda") if compile is None else compile
    result = run(FinetuneConfig(**options), resume=resume, trust_checkpoint=trust_checkpoint)
    if result is not None:
        _print_scores(result.evaluation)
        print(f"weights: {result.weights}")


@app.command()
def evaluate(
    data: Data,
    checkpoint: Annotated[Path, typer.Option(help="Weights as finetune writes them.")],
    out: Annotated[Path | None, typer.Option(help="JSON file for the scores.")] = None,
    batch_size: int = 32,
    device: Device = None,
    threads: Threads = 2,
) -> None:
    """Top-1, top-5 and loss on the validation videos: one clip, one centre crop each."""
    from taf_fast.run.evaluate import evaluate as run

    model, info = load_model(checkpoint)
    manifest = scan(read_ssv2(data, "validation"), info.num_segments)
    require_classes(checkpoint, info, manifest.classes)
    chosen = _device(device)
    loader = ClipLoader(manifest, info.num_segments, info.size, batch_size, train=False, threads=threads)
    scores = run(model.to(chosen), loader, chosen)
    _print_scores(scores)
    for name, reason in loader.quarantined.items():
        print(f"left out {name}: {reason}")
    if out is not None:
        values = dataclasses.asdict(scores) | {"quarantined": loader.quarantined}
        write_text(out, json.dumps(values))


@app.command()
def attention(
    data: Data,
    checkpoint: Annotated[list[Path], typer.Option(help="Weights of a run; repeat to compare.")],
    out: Annotated[Path, typer.Option(help="PNG file.")],
    clip: Annotated[str | None, typer.Option(help="Id of a validation video. Default: the first.")] = None,
) -> None:
    """Draw the frames of a clip and each model's Grad-CAM of its true class."""
    from taf_fast.report.attention import draw_attention

    names = [path.parent.name or path.stem for path in checkpoint]
    if len(set(names)) < len(names):
        names = [str(path) for path in checkpoint]
    manifest = scan(read_ssv2(data, "validation"), load_model(checkpoint[0])[1].num_segments)
    draw_attention(out, manifest, clip, dict(zip(names, checkpoint, strict=True)))
    print(f"wrote {out}")


def _device(name: str | None) -> torch.device:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise RunError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return torch.device(name)


def _print_scores(scores) -> None:
    print(
        f"top-1 {100 * scores.top1:.2f} %  top-5 {100 * scores.top5:.2f} %  "
        f"loss {scores.loss:.4f}  ({scores.clips} videos)"
    )
