"""Temporal augmentation (TA): perturb clips so that the least attended frames gain attention."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taf_fast import ops

from .base import CleanForward
from .sign_attack import SignAttack, require_choices

_CHOICES = {
    "denominator": ("max", "range"),
    "gradient": ("loss", "logit"),
    "perturb": ("all", "selected"),
}


class TemporalAugment(SignAttack):
    """The TAF paper's augmentation, Eqs. 2 to 6.

    Per clip, with features F and cross-entropy CE against an attack label y^:

    - Eq. 2, the CAM of every frame: ``cam = sum_c mean_hw(dCE/dF)_c F_c``;
    - Eq. 3, normalised over the clip: ``(cam - min) / max``;
    - Eqs. 4 and 5: L_C is the mean of the ``num_frames`` smallest frame sums;
    - Eq. 6, ``steps`` times: ``x <- clip(x + step_size sgn(dL_C/dx))`` into the L-infinity ball of
      radius ``epsilon`` around the clean clip, then into the range of pixels.

    The derivative is of second order: L_C depends on dCE/dF. Frames are selected anew at each step,
    y^ stays. Running statistics and parameters are left as they are.

    Args:
        epsilon, step_size: in pixels of range [0,1]; at least 0. Translated by the model's ``std``.
        steps: K, at least 1.
        num_frames: N, between 1 and the clip's T; None for T.
        denominator: Eq. 3 as printed, ``"max"``, or ``"range"``: ``(cam - min) / (max - min)``.
        attack_bn: ``"frozen"`` takes the batch statistics of the clean forward as constants, which
            makes the gradient that of every clip alone; ``"batch"`` differentiates through them,
            over the full batch. A model in eval mode normalises by its running statistics.
        relu: keep only the positive part of the CAM.
        gradient: the CAM's weights are the gradient of the ``"loss"``, or of y^'s ``"logit"``
            (Grad-CAM as published), whose sign is the opposite.
        label: y^. ``"outcome"``: a random other class where the clip is classified correctly, the
            true class where it is not. Or always ``"true"``, or always ``"random"`` (other than true).
        perturb: ``"all"`` frames move, or only the ``"selected"`` ones.
        clamp: keep the result in the range of pixels.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(
        self,
        epsilon: float = 64 / 255,
        step_size: float = 32 / 255,
        steps: int = 1,
        num_frames: int | None = None,
        denominator: str = "max",
        attack_bn: str = "frozen",
        relu: bool = False,
        gradient: str = "loss",
        label: str = "outcome",
        perturb: str = "all",
        clamp: bool = True,
    ):
        super().__init__(epsilon, step_size, steps, attack_bn, label, clamp)
        if num_frames is not None and num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {num_frames}")
        require_choices(_CHOICES, denominator=denominator, gradient=gradient, perturb=perturb)
        self.num_frames, self.denominator = num_frames, denominator
        self.gradient, self.perturb, self.relu = gradient, perturb, relu

    def check(self, x: Tensor, labels: Tensor) -> None:
        super().check(x, labels)
        if self.num_frames is not None and self.num_frames > x.shape[1]:
            raise ValueError(
                f"num_frames must be at most the clip's {x.shape[1]} frames, got {self.num_frames}"
            )

    def attack(
        self,
        model: nn.Module,
        x: Tensor,
        targets: Tensor,
        clean: CleanForward,
        rows: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        if clean.stages:
            _require_frames(clean.stages[0], x)
        return super().attack(model, x, targets, clean, rows, generator)

    def _head_gradients(self, model, parts, targets, rows=slice(None)):
        if hasattr(model, "linear_head") and self.gradient == "loss" and not self.relu:
            gradient, loss, frames = self._through_linear_head(model, parts[0].detach()[rows], targets[rows])
            if len(gradient) < len(parts[0]):
                gradient = torch.zeros_like(parts[0]).index_copy_(0, rows, gradient)
            return (gradient,), loss, self._movable(frames)
        return super()._head_gradients(model, parts, targets, rows)

    @torch.no_grad()
    def _through_linear_head(self, model, features, targets):
        """In closed form, for a head that is: pooling, dropout, linear, mean over frames."""
        dropout, linear = model.linear_head
        pooled = features.mean((-2, -1))
        mask = dropout(torch.ones_like(pooled)) if dropout.training and dropout.p > 0 else None
        logits = linear(pooled if mask is None else pooled * mask).mean(1)
        num_frames = self.num_frames or features.shape[1]
        return ops.cam_gradient(
            features, linear.weight, logits, targets, num_frames, self.denominator, mask=mask
        )

    def _objective(self, features, logits, targets, rows):
        """L_C: Eqs. 2 to 5."""
        if self.gradient == "loss":
            scalar = F.cross_entropy(logits[rows], targets[rows], reduction="sum")
        else:
            scalar = logits[rows].gather(1, targets[rows, None]).sum()
        (weights,) = torch.autograd.grad(scalar, features, create_graph=True)
        cam = ops.frame_cam(features, weights, relu=self.relu)[rows]
        num_frames = self.num_frames or features.shape[1]
        loss, _, frames = ops.cam_loss(cam, num_frames, denominator=self.denominator)
        return loss, self._movable(frames)

    def _movable(self, frames: Tensor) -> Tensor | None:
        return frames if self.perturb == "selected" else None


def _require_frames(features: Tensor, x: Tensor) -> None:
    if features.shape[1] != x.shape[1]:
        raise ValueError(
            f"the model's features have {features.shape[1]} frames, expected one for each of the clip's "
            f"{x.shape[1]}: a model with a temporal stride has no CAM per frame"
        )
