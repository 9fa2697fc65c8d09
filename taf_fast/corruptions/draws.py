"""Independent random numbers for every clip."""

import torch
from torch import Tensor


class Draws:
    """One generator for every clip of a batch; draws are float64 [B, *shape] on ``device``."""

    def __init__(self, seeds: list[int], device: torch.device):
        self._options = [
            {"generator": torch.Generator(device).manual_seed(seed), "device": device, "dtype": torch.float64}
            for seed in seeds
        ]

    def normal(self, *shape: int) -> Tensor:
        """Draw from a normal distribution with mean 0 and standard deviation 1."""
        return torch.stack([torch.randn(shape, **options) for options in self._options])

    def uniform(self, *shape: int) -> Tensor:
        """Draw uniformly from [0,1)."""
        return torch.stack([torch.rand(shape, **options) for options in self._options])
