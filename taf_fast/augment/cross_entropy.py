"""CE-based augmentation: the same attack as TA with the ordinary adversarial objective."""

import torch.nn.functional as F

from .sign_attack import SignAttack


class CrossEntropyAugment(SignAttack):
    """Adversarial clips by PGD on the cross-entropy: Eq. 1 of the TAF paper, its "CE-based" comparison.

    ``steps`` times ``x <- clip(x + step_size sgn(dCE(z, y^)/dx))``, clipped as in :class:`TemporalAugment`.

    Args:
        epsilon, step_size, steps, attack_bn, label, clamp: as of :class:`TemporalAugment`. y^ is the true
            class by default.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(
        self,
        epsilon: float = 64 / 255,
        step_size: float = 32 / 255,
        steps: int = 1,
        attack_bn: str = "frozen",
        label: str = "true",
        clamp: bool = True,
    ):
        super().__init__(epsilon, step_size, steps, attack_bn, label, clamp)

    def _objective(self, features, logits, targets, rows):
        return F.cross_entropy(logits[rows], targets[rows], reduction="none"), None
