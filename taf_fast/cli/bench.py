"""The cost of a training step."""

from typing import Annotated

import torch
import typer

from taf_fast.cli.app import app
from taf_fast.cli.options import Compile, Device, device_of, number_option, option
from taf_fast.errors import RunError
from taf_fast.run.config import ATTACK, MACHINE, TRAINING


@app.command()
def bench(
    model: Annotated[str, option("model", default="tsm_resnet50")] = "tsm_resnet50",
    num_segments: Annotated[int, option("num_segments", default="8")] = 8,
    size: Annotated[int | None, option("size", default="224 on a GPU, or 64")] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Clips per step. Default: 32 on a GPU, or 10.", rich_help_panel=TRAINING),
    ] = None,
    share: Annotated[
        list[float] | None,
        typer.Option(
            help="Fraction of the clips that is attacked, from 0 to 1; repeatable. Default: 0.2 and 1.",
            rich_help_panel=ATTACK,
            parser=number_option,
            metavar="<number>",
        ),
    ] = None,
    steps: Annotated[list[int] | None, option("steps", help="Attack steps, K; repeatable.")] = None,
    repeats: Annotated[int, typer.Option(help="Timed rounds.")] = 5,
    device: Device = None,
    compile: Compile = None,
    precision: Annotated[str | None, option("precision", default="bfloat16 on a GPU, or float32")] = None,
    channels_last: Annotated[
        bool,
        typer.Option(
            help="Keep clips and weights in the channels-last memory format.", rich_help_panel=MACHINE
        ),
    ] = True,
    threads: Annotated[
        int | None,
        option("threads", help="PyTorch's CPU threads.", default="PyTorch's own"),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also print where the time of a TAF step goes.")
    ] = False,
    count: Annotated[
        bool,
        typer.Option(
            "--count",
            help="Time nothing: count what the plain and the TAF step ask of a GPU, which need not be there "
            "(size 224, batch size 30, bfloat16 by default); with --compile, the kernels of each graph.",
        ),
    ] = False,
) -> None:
    """Time a training step of a model: plain, TAF written from the paper, and this package's TAF."""
    from rich.console import Console

    from taf_fast.bench.steps import Setting, measure_steps
    from taf_fast.bench.table import cost_table

    shares, counts = tuple(share or (0.2, 1.0)), tuple(steps or (1,))
    if not all(0 <= value <= 1 for value in shares):
        raise RunError(f"share must be between 0 and 1, got {', '.join(map(str, shares))}")
    if min(1 if batch_size is None else batch_size, repeats) < 1:
        raise RunError(f"batch_size and repeats must be at least 1, got {batch_size} and {repeats}")
    if count:
        timing = {"device": device, "threads": threads, "profile": profile or None}
        timing["channels_last"] = None if channels_last else False
        if given := [name for name, value in timing.items() if value is not None]:
            raise RunError(f"{', '.join(given)}: counts are those of a step in channels_last, on any device")
        step = model, num_segments, size or 224, batch_size or 30, precision or "bfloat16"
        if compile:
            _count_compiled(*step, shares)
        else:
            _count(*step, shares, counts)
        return
    chosen = device_of(device)
    on_gpu = chosen.type == "cuda"
    size = (224 if on_gpu else 64) if size is None else size
    batch_size = (32 if on_gpu else 10) if batch_size is None else batch_size
    if threads is not None:
        torch.set_num_threads(threads)
    compile = on_gpu if compile is None else compile
    precision = precision or ("bfloat16" if on_gpu else "float32")
    setting = Setting(chosen, compile, precision, channels_last)
    costs = measure_steps(model, num_segments, size, batch_size, setting, shares, counts, repeats, profile)
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


def _count(
    model: str,
    num_segments: int,
    size: int,
    batch_size: int,
    precision: str,
    shares: tuple[float, ...],
    steps: tuple[int, ...],
) -> None:
    from rich.console import Console

    from taf_fast.bench.counts import count_step
    from taf_fast.bench.prediction import H100
    from taf_fast.bench.table import count_ratios, count_table

    numbers = [round(share * batch_size) for share in shares]
    choices = [(attacked, k) for attacked in numbers for k in (steps if attacked else (1,))]
    plain, *taf = (
        count_step(model, num_segments, size, batch_size, precision, attacked, k)
        for attacked, k in [(None, 1), *choices]
    )
    title = (
        f"{model}, {batch_size} clips of {num_segments} x {size} pixels, {precision}, channels_last, eager"
    )
    Console(width=max(120, Console().width)).print(count_table([plain, *taf], precision, title))
    print(f"Predicted, not measured, for an {H100.describe(precision)}")
    print(f"Against the plain step, {count_ratios(plain, taf[0])}")


def _count_compiled(
    model: str, num_segments: int, size: int, batch_size: int, precision: str, shares: tuple[float, ...]
) -> None:
    from rich.console import Console

    from taf_fast.bench.compiled import count_compiled
    from taf_fast.bench.counts import count_step
    from taf_fast.bench.prediction import H100
    from taf_fast.bench.table import kernel_ratios, kernel_table

    choices = [None, *(round(share * batch_size) for share in shares)]
    step = model, num_segments, size, batch_size, precision
    graphs = [count_compiled(*step, attacked) for attacked in choices]
    steps = [count_step(*step, attacked) for attacked in choices]
    title = (
        f"{model}, {batch_size} clips of {num_segments} x {size} pixels, {precision}, channels_last, compiled"
    )
    Console(width=max(120, Console().width)).print(kernel_table(steps, graphs, precision, title))
    print(f"Predicted, not measured, for an {H100.describe(precision)}")
    print(f"Against the plain step, {steps[1].name}: {kernel_ratios(graphs[0], graphs[1])}")
