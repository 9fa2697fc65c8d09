"""Random noise in place of the attack: the effect of a perturbation of TA's size without its direction."""

import torch
from torch import Tensor, nn

from taf_fast.augment.base import Augment
from taf_fast.augment.pixel_gradient import CleanForward
from taf_fast.augment.rows import ALL_ROWS, Rows
from taf_fast.models.pixels import per_channel, pixel_range, to_model_input


class NoiseAugment(Augment):
    """Gaussian noise of standard deviation ``step_size``, clipped to the L-infinity ball of radius
    ``epsilon`` and then to the range of pixels: the TAF paper's "random noise" comparison, which puts noise
    in the place of the attack's direction.

    Args:
        epsilon, step_size: amounts of pixels, from 0 to 1: a number, or one for each clip, [B]. Divided
            by the model's ``std``.
        clamp: keep the result in the range of pixels.

    Raises:
        ValueError: an option is out of its range.
    """

    def __init__(
        self, epsilon: float | Tensor = 64 / 255, step_size: float | Tensor = 32 / 255, clamp: bool = True
    ):
        super().__init__(epsilon, step_size, clamp)

    def __call__(
        self, model: nn.Module, clips: Tensor, labels: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Perturb every clip; arguments, result and errors as for :class:`TemporalAugment`."""
        x = to_model_input(model, clips)
        self.check(model, x, labels)
        return self.attack(model, x, labels, generator=generator)[0]

    def attack(
        self,
        model: nn.Module,
        x: Tensor,
        targets: Tensor,
        clean: CleanForward | None = None,
        rows: Rows = ALL_ROWS,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        chosen = rows.of(x.detach())
        device = x.device if generator is None else generator.device
        noise = torch.randn(chosen.shape, generator=generator, device=device).to(chosen)
        step_size, epsilon = map(per_channel, self.pixel_limits(model, x, rows))
        perturbed = chosen + (noise * step_size).clamp_(-epsilon, epsilon)
        if self.clamp:
            perturbed = perturbed.clamp_(*(per_channel(bound) for bound in pixel_range(model, x)))
        return perturbed.to(x.dtype), torch.zeros(len(chosen), dtype=torch.bool, device=x.device)
