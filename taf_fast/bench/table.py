"""The measured steps as a table."""

from rich import box
from rich.table import Table

from taf_fast.bench.steps import Costs


def cost_table(costs: Costs, title: str) -> Table:
    """A row a step. ``over plain`` is measured; ``by forwards`` is what its share of forwards and backwards
    would cost (see :class:`taf_fast.bench.steps.StepCost`); ``of matmul`` is the rate at which the step
    gets through these, as a part of the machine's rate for a large matrix product."""
    table = Table(title=title, box=box.SIMPLE)
    columns = ("attacked", "K", "ms / step", "clips / s", "over plain", "by forwards", "memory", "of matmul")
    table.add_column("step")
    for column in columns:
        table.add_column(column, justify="right")
    plain = costs.rows[0]
    for row in costs.rows:
        attacked = row is not plain
        # A forward is one part in three of a plain step.
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
