"""Weights and clips made from names, shapes and fixed seeds alone, equal on every machine.

The draws are numpy's frozen legacy generator's, taken as integers: sums stay exact, and no bit depends on a
library's logarithm or order of summation.
"""

import math
import zlib

import numpy
import torch

STEPS = 1 << 16
CONV_GAIN = 1.15  # the usual sqrt(2) amplifies rounding errors
FC_GAIN = 10.0  # a spread of several units for the logits
ONE_ELEMENT_DEVIATION = 0.58


def _integers(name: str, shape) -> numpy.ndarray:
    """Odd integers, uniform in the open interval -STEPS..STEPS."""
    random = numpy.random.RandomState(zlib.crc32(name.encode()))
    return 2 * (random.random_sample(tuple(shape)) * STEPS).astype(numpy.int64) - (STEPS - 1)


def _float32(values: numpy.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(numpy.float32))


def _spread(name: str, shape, deviation: float) -> torch.Tensor:
    """Uniform values with mean 0 and this standard deviation."""
    return _float32(_integers(name, shape) * (deviation * math.sqrt(3) / STEPS))


def _filters(name: str, shape, gain: float) -> torch.Tensor:
    """Filters of standard deviation gain / sqrt(fan_in). Each one sums to zero, or the mean that ReLUs leave
    in all features would outgrow, layer by layer, what the clip makes of them. One-element filters cannot."""
    fan_in = math.prod(shape[1:])
    if fan_in == 1:
        return _spread(name, shape, ONE_ELEMENT_DEVIATION)
    draws = _integers(name, (shape[0], fan_in))
    centred = draws * fan_in - draws.sum(1, keepdims=True)
    return _float32(centred * (gain * math.sqrt(3 / fan_in) / (fan_in * STEPS))).reshape(tuple(shape))


def fill(shapes: dict[str, tuple]) -> dict[str, torch.Tensor]:
    """A state dict of these names and shapes. A tensor follows from its own name, its shape and whether it is
    a batch norm's: whether a running_mean of the same prefix is among the names."""
    state = {}
    for name, shape in shapes.items():
        prefix, _, kind = name.rpartition(".")
        if kind == "num_batches_tracked":
            state[name] = torch.zeros(tuple(shape), dtype=torch.int64)
        elif f"{prefix}.running_mean" in shapes and kind in ("weight", "running_var"):
            state[name] = 1 + _spread(name, shape, 1 / math.sqrt(12))  # 0.5 .. 1.5
        elif len(shape) == 1:
            state[name] = _spread(name, shape, 0.1)
        else:
            state[name] = _filters(name, shape, FC_GAIN if len(shape) == 2 else CONV_GAIN)
    return state


def clip(batch: int, num_segments: int, size: int = 224) -> torch.Tensor:
    """A clip [batch, num_segments, 3, size, size] of standard deviation 1: big squares, other ones in every
    frame, under fine noise. Noise alone would even out in the global pooling and leave all clips alike."""
    random = numpy.random.RandomState(20)
    side, count = 112, -(-size // 112)
    squares = random.randint(-104, 105, (batch, num_segments, 3, count, count))
    squares = squares.repeat(side, axis=3).repeat(side, axis=4)[..., :size, :size]
    noise = random.randint(-40, 41, squares.shape)
    return _float32((squares + noise) / 64)
