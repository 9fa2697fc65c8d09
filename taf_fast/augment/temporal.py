"""Temporal augmentation (TA): perturb clips so that the least attended frames gain attention."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taf_fast import ops
from taf_fast.augment.pixel_gradient import CleanForward, HeadGradients, Objective, ObjectiveValue
from taf_fast.augment.rows import ALL_ROWS, Rows
from taf_fast.augment.sign_attack import SignAttack, require_choices
from taf_fast.models.contract import StagedView

_CHOICES = {
    "denominator": ("max", "range"),
    "gradient": ("loss", "logit"),
    "perturb": ("all", "selected"),
}


class TemporalAttention(Objective):
    """L_C of Eqs. 2 to 5: the mean attention to the ``num_frames`` least attended frames of a clip.

    Args:
        num_frames, denominator, relu, gradient, perturb: see :class:`TemporalAugment`.

    Raises:
        ValueError: an option is out of its range.
    """

    def __init__(
        self,
        num_frames: int | None = None,
        denominator: str = "max",
        relu: bool = False,
        gradient: str = "loss",
        perturb: str = "all",
    ):
        if num_frames is not None and num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {num_frames}")
        require_choices(_CHOICES, denominator=denominator, gradient=gradient, perturb=perturb)
        self.num_frames = num_frames
        self.denominator = denominator
        self.relu = relu
        self.gradient = gradient
        self.perturb = perturb

    def __call__(self, features: Tensor, logits: Tensor, targets: Tensor, rows: Rows) -> ObjectiveValue:
        logits, targets = rows.of(logits), rows.of(targets)
        if self.gradient == "loss":
            scalar = F.cross_entropy(logits, targets, reduction="sum")
        else:
            scalar = logits.gather(1, targets[:, None]).sum()
        (weights,) = torch.autograd.grad(scalar, features, create_graph=True)
        cam = rows.of(ops.frame_cam(features, weights, relu=self.relu))
        loss, _, frames = ops.cam_loss(cam, self._frames_of(features), denominator=self.denominator)
        return ObjectiveValue(loss, self._movable(frames))

    def head_gradients(
        self, view: StagedView, stages: tuple[Tensor, ...], targets: Tensor, rows: Rows
    ) -> HeadGradients:
        linear_head = view.linear_head
        if linear_head is None or self.gradient != "loss" or self.relu:
            return super().head_gradients(view, stages, targets, rows)
        features = stages[0].detach()
        gradient, loss, frames = self._in_closed_form(linear_head, rows.of(features), rows.of(targets))
        if rows.index is not None:
            gradient = torch.zeros_like(features).index_copy_(0, rows.index, gradient)
        return HeadGradients((gradient,), loss, self._movable(frames))

    @torch.no_grad()
    def _in_closed_form(
        self, linear_head: tuple[nn.Dropout, nn.Linear], features: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """For a head that is: pooling, dropout, linear, mean over frames."""
        dropout, linear = linear_head
        pooled = features.mean((-2, -1))
        mask = dropout(torch.ones_like(pooled)) if dropout.training and dropout.p > 0 else None
        logits = linear(pooled if mask is None else pooled * mask).mean(1)
        num_frames = self._frames_of(features)
        return ops.cam_gradient(
            features, linear.weight, logits, targets, num_frames, self.denominator, mask=mask
        )

    def _frames_of(self, features: Tensor) -> int:
        return self.num_frames or features.shape[1]

    def _movable(self, frames: Tensor) -> Tensor | None:
        return frames if self.perturb == "selected" else None


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
        epsilon, step_size: amounts of pixels, from 0 to 1: a number, or one for each clip, [B]. Divided
            by the model's ``std``.
        steps: K, at least 1.
        num_frames: N, between 1 and the clip's T; None for T.
        denominator: Eq. 3 as printed, ``"max"``, or ``"range"``: ``(cam - min) / (max - min)``.
        attack_bn: ``"frozen"`` takes the batch statistics of the clean forward as constants, so that each
            clip's gradient is its own; ``"batch"`` differentiates through them, over the full batch. A model
            in eval mode normalises by its running statistics either way.
        relu: keep only the positive part of the CAM.
        gradient: the CAM's weights are the gradient of the ``"loss"``, or of y^'s ``"logit"``
            (Grad-CAM as published), whose sign is the opposite.
        label: y^. ``"outcome"``: a random other class where the clip is classified correctly, the
            true class where it is not. Or always ``"true"``, or always ``"random"`` (a class other than the
            true one).
        perturb: ``"all"`` frames move, or only the ``"selected"`` ones.
        clamp: keep the result in the range of pixels.

    Raises:
        ValueError: an option is out of its range.
    """

    def __init__(
        self,
        epsilon: float | Tensor = 64 / 255,
        step_size: float | Tensor = 32 / 255,
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
        objective = TemporalAttention(num_frames, denominator, relu, gradient, perturb)
        super().__init__(objective, epsilon, step_size, steps, attack_bn, label, clamp)
        self.num_frames = num_frames

    def check(self, model: nn.Module, x: Tensor, labels: Tensor) -> None:
        if self.num_frames is not None and self.num_frames > x.shape[1]:
            raise ValueError(
                f"num_frames must be at most the clip's {x.shape[1]} frames, got {self.num_frames}"
            )
        super().check(model, x, labels)

    def attack(
        self,
        model: nn.Module,
        x: Tensor,
        targets: Tensor,
        clean: CleanForward,
        rows: Rows = ALL_ROWS,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        if clean.stages is not None:
            _require_frames(clean.stages[0], x)
        return super().attack(model, x, targets, clean, rows, generator)


def _require_frames(features: Tensor, x: Tensor) -> None:
    if features.shape[1] != x.shape[1]:
        raise ValueError(
            f"the model's features have {features.shape[1]} frames, expected one for each of the clip's "
            f"{x.shape[1]}: a model with a temporal stride has no CAM per frame"
        )
