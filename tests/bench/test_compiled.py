"""The kernels of compiled graphs, counted without a GPU."""

import shutil

import pytest
import torch

from taf_fast.bench.compiled import RELEASE, Kernels, count_compiled, with_graphs
from taf_fast.bench.counts import REPLAY, Launch, StepCounts, Wait, count_step
from taf_fast.bench.prediction import predicted_seconds
from taf_fast.bench.table import kernel_table


def launches(phase, *flops):
    return [Launch(phase, "mm", True, value, 1.0) for value in flops]


def test_graphs_take_the_place_of_their_phases():
    eager = [
        *launches("input, choice, losses", 1.0),
        *launches("clean forward", 2.0, 3.0),
        Wait("clean forward", 2),
        *launches("input, choice, losses", 4.0),
        *launches("clean forward", 5.0),
        Wait("attack", 5),
    ]
    graph = launches("clean forward", 10.0, 11.0, 12.0)
    graphs = {"clean forward": Kernels(0, 0, 3, 3.0, tuple(graph))}
    assert with_graphs(StepCounts(1, 1, 1, eager, peak_bytes=0), graphs) == [
        eager[0],
        *graph,
        Wait("clean forward", 4),  # the graph is launched as a whole
        eager[4],
        Wait("attack", 5),
    ]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has a device guard of its own")
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
@pytest.mark.skipif(not torch.__version__.startswith(f"{RELEASE}."), reason=f"for torch {RELEASE}")
def test_kernels_of_a_step():
    """The replay has at most one kernel for each ReLU and each shift, besides a few for all scales and
    weights, the pool and the output: no layer casts its weight, scales it or computes its scale alone. All
    graphs have the matrix products of the eager step."""
    step = "tsm_resnet18", 4, 64, 5, "bfloat16", 2
    graphs, counts = count_compiled(*step), count_step(*step)
    relus, shifts, convolutions = 17, 8, 20
    replay = graphs[REPLAY]
    assert (replay.own, replay.matrix) == (shifts, convolutions)
    assert relus <= replay.triton <= relus + 6
    for phase, kernels in graphs.items():
        assert sum(launch.flops for launch in kernels.launches) == counts.phases[phase].flops > 0, phase
        assert sum(launch.matrix for launch in kernels.launches) == kernels.matrix
        # A graph's random numbers are launches, too.
        assert 0 <= len(kernels.launches) - sum(kernels[:3]) <= 2
    compiled = predicted_seconds(with_graphs(counts, graphs), "bfloat16")
    assert compiled < predicted_seconds(counts.events, "bfloat16")  # so small a step is all launches
    table = kernel_table([counts], [graphs], "bfloat16", "")
    assert list(table.columns[-1].cells)[-1] == f"{1000 * compiled:.1f}"
