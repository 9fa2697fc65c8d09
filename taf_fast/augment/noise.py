"""Random noise in place of the attack: what a perturbation of TA's size does without its direction."""

import torch
from torch import Tensor, nn

from taf_fast.clips import per_channel, pixel_range, pixel_units, to_model_input

from .base import Augment, CleanForward


class NoiseAugment(Augment):
    """Gaussian noise of standard deviation ``step_size``, clipped to the L-infinity ball of radius
    ``epsilon`` and then to the range of pixels: the TAF paper's "random noise" comparison, which puts noise
    in the place of the attack's direction.

    Args:
        epsilon, step_size: in pixels of range [0,1]; at least 0. Translated by the model's ``std``.
        clamp: keep the result in the range of pixels.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(self, epsilon: float = 64 / 255, step_size: float = 32 / 255, clamp: bool = True):
        super().__init__(epsilon, step_size, clamp)

    def __call__(
        self, model: nn.Module, clips: Tensor, labels: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Perturb every clip; arguments, result and errors are those of :class:`TemporalAugment`."""
        x = to_model_input(model, clips)
        self.check(x, labels)
        return self.attack(model, x, labels, generator=generator)[0]

    def attack(
        self,
        model: nn.Module,
        x: Tensor,
        targets: Tensor,
        clean: CleanForward | None = None,
        rows: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        chosen = x.detach() if rows is None else x.detach()[rows]
        device = x.device if generator is None else generator.device
        noise = torch.randn(chosen.shape, generator=generator, device=device).to(chosen)
        step_size, epsilon = (per_channel(pixel_units(model, v, x)) for v in (self.step_size, self.epsilon))
        perturbed = chosen + (noise * step_size).clamp_(-epsilon, epsilon)
        if self.clamp:
            perturbed = perturbed.clamp_(*(per_channel(bound) for bound in pixel_range(model, x)))
        return perturbed.to(x.dtype), torch.zeros(len(chosen), dtype=torch.bool, device=x.device)
