"""Shared by the op tests: devices, memory layouts, and memory that is NaN until written."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

DEVICES = ["cpu"]
if torch.cuda.is_available():
    DEVICES.append(pytest.param("cuda", marks=pytest.mark.gpu))


@pytest.fixture(params=DEVICES)
def device(request) -> str:
    return request.param


@pytest.fixture(autouse=True)
def nan_filled_memory():
    """Under deterministic algorithms torch.empty is filled with NaN: an element left unwritten shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def contiguous(x: Tensor) -> Tensor:
    return x.contiguous()


def channels_last(x: Tensor) -> Tensor:
    """Channels fast, for any number of leading dimensions."""
    return x.movedim(-3, -1).contiguous().movedim(-1, -3)


def transposed(x: Tensor) -> Tensor:
    """The two picture axes swapped in memory: rows cannot be joined into one axis of positions."""
    return x.mT.contiguous().mT


def batch_last(x: Tensor) -> Tensor:
    """The first axis fastest in memory."""
    return x.movedim(0, -1).contiguous().movedim(-1, 0)


def cropped(x: Tensor) -> Tensor:
    """A window of a larger tensor: gaps between rows and an offset that breaks alignment."""
    larger = x.new_full((*x.shape[:-2], x.shape[-2] + 2, x.shape[-1] + 3), float("nan"))
    window = larger[..., 1:-1, 1:-2]
    window.copy_(x)
    return window


def every_other(x: Tensor) -> Tensor:
    """Every second entry of the first axis."""
    return torch.stack((x, torch.full_like(x, float("nan"))), dim=1).flatten(0, 1)[::2]


def spaced_channels(x: Tensor) -> Tensor:
    """Every second channel of a larger tensor: gaps, but positions that can be joined."""
    return torch.stack((x, torch.full_like(x, float("nan"))), dim=-3).flatten(-4, -3)[..., ::2, :, :]


LAYOUTS = [contiguous, channels_last, transposed, batch_last, cropped, every_other, spaced_channels]


@pytest.fixture(params=LAYOUTS, ids=lambda layout: layout.__name__)
def layout(request) -> Callable[[Tensor], Tensor]:
    return request.param
