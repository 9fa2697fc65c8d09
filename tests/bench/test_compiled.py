"""The kernels of compiled graphs, counted without a GPU."""

import shutil

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from taf_fast.bench import compiled
from taf_fast.bench.counts import fake_model
from taf_fast.models.contract import view_of
from taf_fast.precision import autocast

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has a device guard of its own"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler"),
    pytest.mark.skipif(
        not torch.__version__.startswith(f"{compiled.RELEASE}."), reason=f"for torch {compiled.RELEASE}"
    ),
]


def test_the_replay_has_no_kernel_for_bookkeeping():
    """At most one for each ReLU and each shift, besides a few for all scales and weights, the pool and the
    output: no layer casts its weight, scales it or computes its scale alone."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    model = fake_model(mode, "tsm_resnet18", 4, dual=False)
    with mode, autocast(torch.device("cpu"), "bfloat16"), compiled._operations_of_a_gpu():
        x = torch.empty(5, 4, 64, 64, 3).movedim(-1, 2)
        graph = compiled._replay_graph(view_of(model), x, 2)
    with compiled._on_a_gpu(), compiled._operations_of_a_gpu():
        kernels = compiled._kernels(graph, is_backward=False)
    relus, shifts, convolutions = 17, 8, 20
    assert (kernels.own, kernels.matrix) == (shifts, convolutions)
    assert relus <= kernels.triton <= relus + 6
