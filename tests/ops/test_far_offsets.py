"""Clips more than 2^31 elements apart: offsets are kept in 64 bits, on every path.

The memory between the clips is never touched, so it costs addresses only.
"""

import numpy as np
import pytest
import torch
from reference import cam_gradient as head_reference
from reference import ops as reference
from torch import Tensor

from taf_fast import ops

APART = 2**31 + 64


@pytest.fixture(scope="module")
def memory() -> Tensor:
    return torch.from_numpy(np.zeros(APART + 4096, np.float16))


def far_apart(memory: Tensor, values: Tensor) -> Tensor:
    """Return a float16 copy of values [2,...] whose two entries are APART elements apart."""
    dense = torch.empty(values.shape[1:]).stride()
    view = memory.as_strided(values.shape, (APART, *dense))
    return view.copy_(values)


def test_frame_cam(memory, generator):
    features = far_apart(memory, torch.randn(2, 3, 10, 3, 3, generator=generator))
    grads = torch.randn(2, 3, 10, generator=generator, dtype=torch.float16)
    exact = reference.frame_cam(features.double(), grads.double())
    torch.testing.assert_close(ops.frame_cam(features, grads).double(), exact, rtol=1e-3, atol=1e-3)


def test_cam_loss(memory, generator):
    cam = far_apart(memory, torch.rand(2, 5, 3, 3, generator=generator))
    loss, scores, frames = ops.cam_loss(cam, 2, "range")
    exact = reference.cam_loss(cam.double(), 2, "range")
    torch.testing.assert_close(scores.double(), exact[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss.double(), exact[0], rtol=1e-4, atol=1e-4)


def test_cam_gradient(memory, generator):
    features = far_apart(memory, torch.rand(2, 3, 10, 3, 3, generator=generator))
    weight, bias = torch.randn(4, 10, generator=generator), torch.zeros(4, dtype=torch.float64)
    targets = torch.tensor([1, 3])
    logits = head_reference.head(features.double(), weight.double(), bias, None)
    gradient, loss, _ = ops.cam_gradient(features, weight, logits.float(), targets, 3)
    exact = head_reference.cam_gradient(features.double(), weight.double(), bias, targets, 3)
    torch.testing.assert_close(loss.double(), exact[1], rtol=1e-3, atol=1e-3)
    scale = exact[0].abs().amax((1, 2, 3, 4), keepdim=True)
    torch.testing.assert_close(gradient.double() / scale, exact[0] / scale, rtol=0, atol=5e-3)


def test_temporal_shift(memory, generator):
    x = far_apart(memory, torch.randn(2, 16, 3, 3, generator=generator))
    assert torch.equal(ops.temporal_shift(x, 2), reference.temporal_shift(x, 2))
