"""The ops within torch: opcheck, torch.compile, and the kernels behind each op.

Fake tensors cannot enter an interpreted kernel, hence the skip.
"""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import dispatch_functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck

from taf_fast import ops
from taf_fast.kernels import common

pytestmark = pytest.mark.skipif(common.INTERPRETED, reason="kernels are interpreted in this process")


def normal(*shape, generator, dtype=torch.float32):
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def op_arguments(name: str, generator, dtype=torch.float32) -> tuple:
    """Arguments of the registered operator, with gradients required wherever possible."""

    def leaf(*shape, dtype=dtype):
        return normal(*shape, generator=generator, dtype=dtype).requires_grad_()

    full = torch.float32
    frames = {
        "frame_cam": lambda: (leaf(2, 3, 4, 5, 3), leaf(2, 3, 4, dtype=full)),
        "frame_cam_backward": lambda: (
            leaf(2, 3, 5, 3, dtype=full),
            leaf(2, 3, 4, 5, 3),
            leaf(2, 3, 4, dtype=full),
        ),
        "cam_loss": lambda: (leaf(2, 5, 3, 4), 3, False, 1e-6),
        "cam_loss_backward": lambda: (leaf(2, 5, dtype=full), leaf(2, 5, 3, 4), True, 1e-6),
        "pgd_step": lambda: (
            *(leaf(2, 3, 4, 5).detach() for _ in range(3)),
            torch.rand(4, 3, generator=generator),
            [],
        ),
        "temporal_shift": lambda: (leaf(6, 8, 3, 2), 3, 4, False),
    }
    return frames[name]()


OPS = ["frame_cam", "frame_cam_backward", "cam_loss", "cam_loss_backward", "pgd_step", "temporal_shift"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPS)
def test_opcheck(name, dtype, generator):
    opcheck(getattr(torch.ops.taf_fast, name).default, op_arguments(name, generator, dtype))


@pytest.mark.parametrize("name", OPS)
def test_torch_finds_the_kernel_behind_the_op(name):
    """Its source is part of the key under which compiled graphs are cached."""
    library = pytest.importorskip("torch._library.triton")
    kernels = library.get_triton_kernels_for_op(f"taf_fast::{name}")
    assert f"_{name}_kernel" in [kernel.__name__ for kernel in kernels]


@pytest.mark.parametrize("name", OPS)
def test_the_cuda_branch_traces_to_one_kernel(name, generator):
    """Fake CUDA tensors need no GPU: one launch per op, and outputs that match the CPU's."""
    operator = getattr(torch.ops.taf_fast, name).default
    arguments = op_arguments(name, generator)
    on_cpu = operator(*arguments)
    with FakeTensorMode():
        fake = [
            torch.empty(value.shape, dtype=value.dtype, device="cuda")
            if isinstance(value, torch.Tensor)
            else value
            for value in arguments
        ]
        graph = make_fx(dispatch_functionalize(lambda *tensors: operator(*tensors)))(*fake)
    launches = [node for node in graph.graph.nodes if "triton_kernel_wrapper" in str(node.target)]
    assert len(launches) == 1
    outputs = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    on_cpu = on_cpu if isinstance(on_cpu, tuple) else (on_cpu,)
    outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    for node, expected in zip(outputs, on_cpu, strict=True):
        fake_output = node.meta["val"]
        assert (fake_output.shape, fake_output.dtype) == (expected.shape, expected.dtype)
        assert fake_output.stride() == expected.stride()


def attack_loss(features, grads):
    loss, scores, _ = ops.cam_loss(ops.frame_cam(features, grads, relu=True), 2, "range")
    return loss.sum() + scores.square().mean()


def shifted(x):
    return ops.temporal_shift(x.sin(), 3).square().sum()


def gradients(function, *arguments):
    leaves = [argument.detach().clone().requires_grad_() for argument in arguments]
    value = function(*leaves)
    return value, *torch.autograd.grad(value, leaves)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize(
    "function, shapes",
    [(attack_loss, [(2, 3, 4, 5, 3)] * 2), (shifted, [(6, 16, 3, 2)])],
    ids=["attack_loss", "temporal_shift"],
)
def test_compiled_equals_eager(function, shapes, backend, generator):
    arguments = [normal(*shape, generator=generator) for shape in shapes]
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    for actual, expected in zip(
        gradients(compiled, *arguments), gradients(function, *arguments), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["numbers", "tensors"])
def test_compiled_pgd_step_equals_eager(kind, generator):
    x, grad, clean = (normal(2, 3, 5, 4, generator=generator) for _ in range(3))
    grad[0, 0, 0, 0] = torch.nan

    def step(x, grad, clean, size):
        bounds = (size, 0.2, 0.0, None) if kind == "numbers" else (size, x.new_full((3,), 0.2), None, 1.0)
        return ops.pgd_step(x, grad, clean, *bounds)

    compiled = torch.compile(step, fullgraph=True)
    for size in (0.1, 0.3, 0.5):  # a changing number must not break the graph
        assert torch.equal(compiled(x, grad, clean, size), step(x, grad, clean, size))


@pytest.mark.slow
def test_a_changing_number_of_clips_compiles_twice(generator):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attack_loss, fullgraph=True, backend=counter)
    for clips in (4, 3, 2, 6):
        features, grads = (normal(clips, 3, 4, 5, 3, generator=generator) for _ in range(2))
        torch._dynamo.maybe_mark_dynamic(features, 0)
        torch.testing.assert_close(compiled(features, grads), attack_loss(features, grads))
    assert counter.frame_count <= 2


def test_double_backward_of_the_eager_head_on_compiled_features(generator):
    """The supported split: features compiled, the map and its second order outside."""
    weight = normal(4, 3, generator=generator)
    trunk = torch.compile(lambda x: torch.einsum("btihw,ci->btchw", x, weight).relu(), fullgraph=True)

    def loss(x, trunk):
        features = trunk(x)
        (grads,) = torch.autograd.grad(features.mean((3, 4)).pow(3).sum(), features, create_graph=True)
        return ops.cam_loss(ops.frame_cam(features, grads), 2)[0].sum()

    x = normal(2, 3, 3, 5, 4, generator=generator)
    eager = gradients(lambda x: loss(x, lambda x: torch.einsum("btihw,ci->btchw", x, weight).relu()), x)
    for actual, expected in zip(gradients(lambda x: loss(x, trunk), x), eager, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
