"""CE-based augmentation: the same attack as TA with the ordinary adversarial objective."""

import torch.nn.functional as F
from torch import Tensor

from taf_fast.augment.pixel_gradient import Objective, ObjectiveValue
from taf_fast.augment.rows import Rows
from taf_fast.augment.sign_attack import SignAttack


class CrossEntropy(Objective):
    """The cross-entropy of a clip's logits against its target."""

    def __call__(self, features: Tensor, logits: Tensor, targets: Tensor, rows: Rows) -> ObjectiveValue:
        loss = F.cross_entropy(rows.of(logits), rows.of(targets), reduction="none")
        return ObjectiveValue(loss, None)


class CrossEntropyAugment(SignAttack):
    """Adversarial clips by PGD on the cross-entropy: Eq. 1 of the TAF paper, its "CE-based" comparison.

    ``steps`` times ``x <- clip(x + step_size sgn(dCE(z, y^)/dx))``, clipped as in :class:`TemporalAugment`.

    Args:
        epsilon, step_size, steps, attack_bn, label, clamp: as for :class:`TemporalAugment`. y^ is the true
            class by default.

    Raises:
        ValueError: an option is out of its range.
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
        super().__init__(CrossEntropy(), epsilon, step_size, steps, attack_bn, label, clamp)
