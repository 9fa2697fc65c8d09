"""The command ``taf-fast``."""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from taf_fast import models
from taf_fast.data import (
    ClipLoader,
    EvaluationViews,
    TrainingView,
    raw_ssv1_classes,
    read_dataset,
    read_manifest,
    scan,
)
from taf_fast.files import write_atomically, write_text
from taf_fast.precision import PRECISIONS
from taf_fast.run import ranks
from taf_fast.run.checkpoint import read_info
from taf_fast.run.config import FinetuneConfig, RunError
from taf_fast.run.model import build_model
from taf_fast.run.recipes import NAMES, official_sampling, read_recipe

app = typer.Typer(
    help="Temporal Adversarial Fine-tuning of video models.", no_args_is_help=True, add_completion=False
)

Data = Annotated[Path, typer.Option(help="Folder of a data set; docs/data.md says which are read.")]
ClassOrder = Annotated[
    str | None,
    typer.Option(help="Of the checkpoint: alphabetical, or raw, as in Something-Something V1's labels file."),
]
ManifestOption = Annotated[
    Path | None,
    typer.Option(help="File of taf-fast scan. Default: taf_fast_manifest.jsonl in --data, if it is there."),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... Default: cuda if there is one.")]
Trust = Annotated[bool, typer.Option(help="Run the code a torch.save checkpoint may hold.")]
Threads = Annotated[int, typer.Option(help="Threads that decode.")]


def main() -> None:
    """Run the command line; what the user can mend is one line on stderr and exit status 2."""
    with ranks.joined():
        try:
            with ranks.together():
                app()
        except ranks.USER_ERRORS as error:
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


_DEFAULT = {field.name: field.default for field in dataclasses.fields(FinetuneConfig)}


def _value(name: str, help: str | None = None, *flags: str):
    """An option of a run whose default is the recipe's value, or that of the configuration."""
    default = _DEFAULT[name]
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
    method: Annotated[str | None, _value("method", "taf or plain.")] = None,
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
    denominator: Annotated[str | None, _value("denominator", "Eq. 3: max or range.")] = None,
    attack_bn: Annotated[
        str | None, _value("attack_bn", "Batch statistics in the attack: frozen or batch.")
    ] = None,
    seed: Annotated[int | None, _value("seed")] = None,
    device: Device = None,
    compile: Annotated[bool | None, typer.Option(help="torch.compile. Default: on a GPU only.")] = None,
    precision: Annotated[str | None, _value("precision", "Of training: float32 or bfloat16.")] = None,
    decoder: Annotated[str | None, _value("decoder", "pyav, dali or, on a GPU, mixed.")] = None,
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

    given = {name: value for name, value in locals().items() if name in _DEFAULT and value is not None}
    if lr_step:
        given["lr_steps"] = tuple(lr_step)
    if out is None:
        if recipe is None:
            raise RunError("--out is missing: without --recipe the folder of the run must be given")
        given["out"] = Path("runs") / Path(recipe).stem
    given |= {name: str(given[name]) for name in ("data", "out", "manifest", "checkpoint") if name in given}
    given["device"] = str(_device(device))
    given.setdefault("compile", given["device"].startswith("cuda"))
    values = {} if recipe is None else read_recipe(recipe)
    # Looking into a checkpoint can mean reading all of it.
    open_questions = {"model", "num_segments", "size"} - set(values | given)
    known = _known(checkpoint, trust_checkpoint) if checkpoint is not None and open_questions else {}
    config = FinetuneConfig(**known | values | given)
    result = run(config, resume=resume, trust_checkpoint=trust_checkpoint)
    if result is not None:
        _print_scores(result.evaluation)
        print(f"weights: {result.weights}")


@app.command()
def recipes() -> None:
    """List the recipes: a model and a data set of the paper's Table 1 each."""
    for name in NAMES:
        values = read_recipe(name)
        print(f"{name:24} {values['model']}, {values['num_segments']} frames, {values['dataset']}")


@app.command()
def evaluate(
    data: Data,
    checkpoint: Annotated[
        Path, typer.Option(help="Weights of finetune, of the official TSM, GST, TAM and TPN or of MMAction2.")
    ],
    num_segments: Annotated[int | None, typer.Option(help="Default: the checkpoint's, or 8.")] = None,
    size: Annotated[int | None, typer.Option(help="In pixels. Default: the checkpoint's, or 224.")] = None,
    crops: Annotated[
        int, typer.Option(help="1: the centre. 3: squares of the whole short side, larger by 256/224.")
    ] = 1,
    clips: Annotated[int, typer.Option(help="1, or the 2 of the model's official test.")] = 1,
    class_order: ClassOrder = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the scores.")] = None,
    manifest: ManifestOption = None,
    batch_size: Annotated[int, typer.Option(help="Clips at once on each device, with their crops.")] = 32,
    device: Device = None,
    threads: Threads = 2,
    trust_checkpoint: Trust = False,
) -> None:
    """Top-1, top-5 and loss on the validation videos, by the mean logits of their crops and clips."""
    from taf_fast.run.evaluate import evaluate as run

    if min(batch_size, threads, num_segments or 1, size or 1) < 1:
        raise RunError("num_segments, size, batch_size and threads must be at least 1")
    try:
        views = EvaluationViews(crops, clips)
    except ValueError as error:
        raise RunError(str(error)) from None
    known = _known(checkpoint, trust_checkpoint)
    num_segments = num_segments or known.get("num_segments", _DEFAULT["num_segments"])
    size = size or known.get("size", _DEFAULT["size"])
    dataset = read_dataset(data, "validation")
    model = build_model(dataset, known["model"], num_segments, checkpoint, class_order, trust_checkpoint)
    scanned = ranks.from_first(lambda: scan(dataset, known=read_manifest(data, manifest)))
    chosen = ranks.own_device(str(_device(device)))
    view = TrainingView(official_sampling(known["model"]))
    loader = ClipLoader(
        scanned,
        num_segments,
        size,
        batch_size,
        train=False,
        threads=threads,
        rank=ranks.rank(),
        world_size=ranks.count(),
        view=view,
        views=views,
    )
    scores = run(model.to(chosen), loader, chosen)
    _print_scores(scores)
    quarantined = ranks.union(loader.quarantined)
    for name, reason in quarantined.items():
        print(f"left out {name}: {reason}")
    if out is not None and ranks.first():
        values = dataclasses.asdict(scores) | {"quarantined": quarantined}
        write_text(out, json.dumps(values))


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Weights of any origin that finetune reads.")],
    out: Annotated[Path, typer.Argument(help="File to write, for torch.load.")],
    to: Annotated[str, typer.Option(help="Whose code is to load it: official, or mmaction2 (TSM, TPN).")],
    read_raw: Annotated[
        Path | None,
        typer.Option(help="Something-Something V1 folder, if CHECKPOINT has the class order of its labels."),
    ] = None,
    write_raw: Annotated[
        Path | None, typer.Option(help="Likewise, if OUT is to have that order (MMAction2's does).")
    ] = None,
    trust_checkpoint: Trust = False,
) -> None:
    """Write a checkpoint for the code a model came from: fine-tuned here, used there."""
    info = read_info(checkpoint)
    found = models.inspect(checkpoint, trust_checkpoint)
    options = found.options if info is None else info.options
    model = models.build(found.model, found.num_classes, **options)
    raw = None if read_raw is None else raw_ssv1_classes(read_raw)
    print(models.load(model, checkpoint, trust=trust_checkpoint, raw_classes=raw))
    raw = None if write_raw is None else raw_ssv1_classes(write_raw)
    content = models.export(model, to, raw_classes=raw)
    write_atomically(out, lambda temporary: torch.save(content, temporary))
    print(f"wrote {out}: {len(content['state_dict'])} tensors for {to} {model.family}")


@app.command()
def bench(
    model: str = "tsm_resnet50",
    num_segments: Annotated[int, typer.Option(help="Frames per clip, T.")] = 8,
    size: Annotated[int | None, typer.Option(help="In pixels. Default: 224 on a GPU, else 64.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Default: 32 on a GPU, else 10.")] = None,
    share: Annotated[list[float], typer.Option(help="Of the clips attacked; may be repeated.")] = (0.2, 1.0),
    steps: Annotated[list[int], typer.Option(help="Attack steps, K; may be repeated.")] = (1,),
    repeats: Annotated[int, typer.Option(help="Timed rounds.")] = 5,
    device: Device = None,
    compile: Annotated[bool | None, typer.Option(help="torch.compile. Default: on a GPU only.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="float32 or bfloat16. Default: bfloat16 on a GPU, else float32.")
    ] = None,
    channels_last: Annotated[bool, typer.Option(help="Memory format of clips and weights.")] = True,
    threads: Annotated[int | None, typer.Option(help="Of PyTorch on the CPU. Default: as it comes.")] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also print where the time of a TAF step goes.")
    ] = False,
) -> None:
    """Time a training step of a model: plain, TAF as written from the paper, and this package's TAF."""
    from rich.console import Console

    from taf_fast.bench.steps import Setting, measure_steps
    from taf_fast.bench.table import cost_table

    chosen = _device(device)
    on_gpu = chosen.type == "cuda"
    size, batch_size = size or (224 if on_gpu else 64), batch_size or (32 if on_gpu else 10)
    if model not in models.NAMES:
        raise RunError(f"model must be one of {', '.join(models.NAMES)}, got {model!r}")
    if not all(0 <= value <= 1 for value in share):
        raise RunError(f"share must be between 0 and 1, got {', '.join(map(str, share))}")
    if min(num_segments, size, batch_size, repeats, threads or 1, *steps) < 1:
        raise RunError("num_segments, size, batch_size, steps, repeats and threads must be at least 1")
    if threads is not None:
        torch.set_num_threads(threads)
    compile = on_gpu if compile is None else compile
    precision = precision or ("bfloat16" if on_gpu else "float32")
    if precision not in PRECISIONS:
        raise RunError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    setting = Setting(chosen, compile, precision, channels_last)
    costs = measure_steps(model, num_segments, size, batch_size, setting, share, steps, repeats, profile)
    where = torch.cuda.get_device_name(chosen) if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    title = (
        f"{model}, {batch_size} clips of {num_segments} x {size} pixels, {setting.describe()}, {where}, "
        f"torch {torch.__version__}"
    )
    console = Console(width=max(110, Console().width))
    console.print(cost_table(costs, title))
    print("The paper reports +25 % (TSM) and +15 % (TPN).")
    if profile:
        print(costs.profile)


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
    manifest = scan(read_dataset(data, "validation"), known=read_manifest(data))
    draw_attention(out, manifest, clip, dict(zip(names, checkpoint, strict=True)))
    print(f"wrote {out}")


def _known(checkpoint: Path, trust: bool) -> dict:
    """What a checkpoint says, or shows, of its model."""
    info = read_info(checkpoint)
    if info is None:
        return {"model": models.inspect(checkpoint, trust).model}
    return {"model": info.model, "num_segments": info.num_segments, "size": info.size}


def _device(name: str | None) -> torch.device:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=ranks.own_device(name))
    except (RuntimeError, AssertionError) as error:
        raise RunError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return torch.device(name)


def _print_scores(scores) -> None:
    print(
        f"top-1 {100 * scores.top1:.2f} %  top-5 {100 * scores.top5:.2f} %  "
        f"loss {scores.loss:.4f}  ({scores.clips} videos)"
    )
