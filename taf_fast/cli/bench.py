"""What a training step costs."""

from typing import Annotated

import torch
import typer

from taf_fast import models
from taf_fast.precision import PRECISIONS
from taf_fast.run.config import RunError

from .app import app
from .options import Device, device_of


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

    chosen = device_of(device)
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
