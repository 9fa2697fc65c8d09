"""AdvProp's attack (Xie et al., 2020): targeted PGD through the auxiliary batch norms."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taf_fast import ops
from taf_fast.augment.base import Augment, random_class, require_steps
from taf_fast.augment.pixel_gradient import CleanForward
from taf_fast.augment.rows import ALL_ROWS, Rows
from taf_fast.models.dual_batch_norm import adversarial_path
from taf_fast.models.modules import modules_of
from taf_fast.models.pixels import per_channel, pixel_range

# Xie et al.: one clip in five starts from its clean pixels.
_RANDOM_START = 0.8


class AdvPropAugment(Augment):
    """Clips pushed towards a random class by PGD, as AdvProp trains with them.

    ``steps`` times ``x <- clip(x - step_size sgn(dCE(z, y^)/dx))``, clipped as in :class:`TemporalAugment`.
    y^ is drawn from all classes, including the true one. The gradient is taken through the auxiliary batch
    norms with their running statistics, and four clips in five start from uniform noise in the ball. AdvProp
    attacks all clips and weights both losses equally: ``TAFStep(..., alpha=0.5, composition="all")``.

    Args:
        epsilon, step_size, steps: as for :class:`TemporalAugment`; AdvProp's values for large models.

    Raises:
        ValueError: an option is out of its range; in use, the model has no adversarial batch norms.
    """

    def __init__(
        self, epsilon: float | Tensor = 4 / 255, step_size: float | Tensor = 1 / 255, steps: int = 5
    ):
        super().__init__(epsilon, step_size, clamp=True)
        require_steps(steps)
        self.steps = steps

    def attack_labels(self, logits: Tensor, labels: Tensor, generator: torch.Generator | None) -> Tensor:
        return random_class(labels, logits.shape[1], generator)

    def attack(
        self,
        model: nn.Module,
        x: Tensor,
        targets: Tensor,
        clean: CleanForward,
        rows: Rows = ALL_ROWS,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        x = x.detach()
        chosen, targets = rows.of(x), rows.of(targets)
        step_size, epsilon = self.pixel_limits(model, x, rows)
        lower, upper = pixel_range(model, x)
        device = x.device if generator is None else generator.device
        noise = torch.rand(chosen.shape, generator=generator, device=device).mul_(2).sub_(1).to(chosen)
        noisy = torch.rand(len(chosen), generator=generator, device=device).to(x.device) < _RANDOM_START
        start = chosen + noise * per_channel(epsilon) * noisy.view(-1, 1, 1, 1, 1)
        perturbed = start.clamp_(per_channel(lower), per_channel(upper)).to(x.dtype)
        failed = torch.zeros(len(chosen), dtype=torch.bool, device=x.device)
        with adversarial_path(model), _evaluating(model):
            for _ in range(self.steps):
                at = perturbed.requires_grad_()
                with torch.enable_grad():
                    loss = F.cross_entropy(model(at), targets, reduction="none")
                    (gradient,) = torch.autograd.grad(loss.sum(), at)
                failed |= ~loss.detach().isfinite()
                perturbed = ops.pgd_step(at.detach(), -gradient, chosen, step_size, epsilon, lower, upper)
        return perturbed, failed


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Within this context every module of ``model`` is in eval mode."""
    training = [module for module in modules_of(model) if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
