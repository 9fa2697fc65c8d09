"""Show measured and counted steps as tables."""

from rich import box
from rich.table import Table

from taf_fast.bench.compiled import Kernels, total, with_graphs
from taf_fast.bench.counts import Counts, StepCounts
from taf_fast.bench.prediction import predicted_seconds
from taf_fast.bench.steps import Costs


def cost_table(costs: Costs, title: str) -> Table:
    """Build a table with one row per step.

    ``over plain`` is the measured overhead; ``by forwards`` is the overhead that counting forwards predicts
    (see :class:`taf_fast.bench.steps.StepCost`); ``of matmul`` is the step's rate of operations, as a share
    of the machine's rate for a large matrix product.
    """
    table = Table(title=title, box=box.SIMPLE)
    columns = ("attacked", "K", "ms / step", "clips / s", "over plain", "by forwards", "memory", "of matmul")
    table.add_column("step")
    for column in columns:
        table.add_column(column, justify="right")
    plain = costs.rows[0]
    for row in costs.rows:
        attacked = row is not plain
        # forward_flops is the cost of one forward.
        flops = costs.forward_flops * row.forwards
        table.add_row(
            row.name,
            f"{row.share:.0%}" if attacked else "",
            str(row.steps) if attacked else "",
            f"{1000 * row.seconds:.0f}",
            f"{costs.clips / row.seconds:.1f}",
            f"{row.seconds / plain.seconds - 1:+.0%}" if attacked else "",
            f"{row.forwards / plain.forwards - 1:+.0%}" if attacked else "",
            f"{row.bytes / plain.bytes:.2f}x" if attacked else f"{row.bytes / 2**30:.2f} GiB",
            f"{flops / row.seconds / costs.matrix_flops:.0%}",
        )
    return table


def count_table(steps: list[StepCounts], precision: str, title: str) -> Table:
    """Build a table with a row for every phase of every step and one for the step as a whole.

    The first step is the plain one; the predicted time is that of :data:`taf_fast.bench.prediction.H100`.
    """
    table = Table(title=title, box=box.SIMPLE)
    table.add_column("step", no_wrap=True)
    table.add_column("phase", no_wrap=True)
    columns = ("launches", "of matrices", "unfused GB", "TFLOP", "waits", "peak GiB", "predicted ms")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    plain = predicted_seconds(steps[0].events, precision)
    for step in steps:
        name = step.name
        for phase, counts in step.phases.items():
            table.add_row(name, phase, *_shown(counts))
            name = ""
        seconds = predicted_seconds(step.events, precision)
        over = "" if step is steps[0] else f" ({seconds / plain - 1:+.0%})"
        table.add_row(
            "", "in all", *_shown(step.total), f"{step.peak_bytes / 2**30:.2f}", f"{1000 * seconds:.1f}{over}"
        )
        table.add_section()
    return table


def _shown(counts: Counts) -> tuple[str, ...]:
    return (
        str(counts.launches),
        str(counts.matrix_launches),
        f"{counts.unfused_bytes / 1e9:.2f}",
        f"{counts.flops / 1e12:.2f}",
        str(counts.waits),
    )


def count_ratios(plain: StepCounts, step: StepCounts) -> str:
    """A step's counts as multiples of the plain step's, in a line."""
    ratios = {
        "launches": step.total.launches / plain.total.launches,
        "unfused bytes": step.total.unfused_bytes / plain.total.unfused_bytes,
        "FLOPs": step.total.flops / plain.total.flops,
        "peak memory": step.peak_bytes / plain.peak_bytes,
    }
    return f"{step.name}: " + ", ".join(f"{name} {ratio:.3f}x" for name, ratio in ratios.items())


def kernel_table(
    steps: list[StepCounts], graphs: list[dict[str, Kernels]], precision: str, title: str
) -> Table:
    """Build a table with a row for every graph of compiled steps, and one for each step as a whole.

    The first step is the plain one; ``steps`` has the counts of the same steps in eager mode, whose launches
    outside the graphs are part of the predicted time.
    """
    table = Table(title=title, box=box.SIMPLE)
    table.add_column("step", no_wrap=True)
    table.add_column("graph", no_wrap=True)
    for column in ("Triton kernels", "own kernels", "of matrices", "GB", "predicted ms"):
        table.add_column(column, justify="right", no_wrap=True)
    seconds = [
        predicted_seconds(with_graphs(step, of), precision) for step, of in zip(steps, graphs, strict=True)
    ]
    for step, of, predicted in zip(steps, graphs, seconds, strict=True):
        over = "" if step is steps[0] else f" ({predicted / seconds[0] - 1:+.0%})"
        name = step.name
        for graph, kernels in of.items():
            table.add_row(name, graph, *_shown_kernels(kernels))
            name = ""
        table.add_row("", "in all", *_shown_kernels(total(of)), f"{1000 * predicted:.1f}{over}")
        table.add_section()
    return table


def _shown_kernels(kernels: Kernels) -> tuple[str, ...]:
    return (*map(str, (kernels.triton, kernels.own, kernels.matrix)), f"{kernels.bytes / 1e9:.1f}")


def kernel_ratios(plain: dict[str, Kernels], taf: dict[str, Kernels]) -> str:
    """The kernels of a compiled step as multiples of the plain step's, in a line."""
    ours, theirs = total(taf), total(plain)
    launches = sum(ours[:3]) / sum(theirs[:3])
    return f"launches {launches:.3f}x, bytes {ours.bytes / theirs.bytes:.3f}x"
