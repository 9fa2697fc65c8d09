"""Eq. 6 for any objective: sign-gradient ascent on the pixels, from what one clean forward left behind."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from taf_fast import ops
from taf_fast.augment.base import Augment, random_other_class, require_steps
from taf_fast.augment.batch_statistics import RecordStatistics
from taf_fast.augment.examination import examine, require_whole
from taf_fast.augment.model_state import running_statistics_untouched
from taf_fast.augment.pixel_gradient import CleanForward, Objective, PixelGradient, coupled, frozen, replayed
from taf_fast.augment.replay import Recording
from taf_fast.augment.rows import ALL_ROWS, Rows
from taf_fast.models.contract import ModelView, StagedView, view_of
from taf_fast.models.pixels import pixel_range

_CHOICES = {"attack_bn": ("frozen", "batch"), "label": ("outcome", "true", "random")}


class SignAttack(Augment):
    """``steps`` times ``x <- clip(x + step_size sgn(dL/dx))``, clipped into the L-infinity ball of radius
    ``epsilon`` around the clean clip, then into the range of pixels (Eq. 6). The target y^ stays the same
    over the steps; running statistics and parameters are left as they are.

    Args:
        objective: L, a number for every clip.
        epsilon, step_size: amounts of pixels, from 0 to 1: a number, or one for each clip, [B]. Divided
            by the model's ``std``.
        steps: K, at least 1.
        attack_bn: ``"frozen"`` takes the batch statistics of the clean forward as constants, so that each
            clip's gradient is its own; ``"batch"`` differentiates through them, over the full batch. A model
            in eval mode normalises by its running statistics either way.
        label: y^. ``"outcome"``: a random other class where the clip is classified correctly, the true class
            where it is not. Or always ``"true"``, or always ``"random"`` (a class other than the true one).
        clamp: keep the result in the range of pixels.

    Raises:
        ValueError: an option is out of its range.
    """

    def __init__(
        self,
        objective: Objective,
        epsilon: float | Tensor = 64 / 255,
        step_size: float | Tensor = 32 / 255,
        steps: int = 1,
        attack_bn: str = "frozen",
        label: str = "outcome",
        clamp: bool = True,
    ):
        super().__init__(epsilon, step_size, clamp)
        require_steps(steps)
        require_choices(_CHOICES, attack_bn=attack_bn, label=label)
        self.objective = objective
        self.steps = steps
        self.attack_bn = attack_bn
        self.label = label

    def check(self, model: nn.Module, x: Tensor, labels: Tensor) -> None:
        super().check(model, x, labels)
        examine(model, x, lambda: self.recording(model), alone=self.attack_bn == "frozen")

    def attack_labels(self, logits: Tensor, labels: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.label == "true":
            return labels
        other = random_other_class(labels, logits.shape[1], generator)
        if self.label == "random":
            return other
        return torch.where(logits.argmax(1) == labels, other, labels)

    def recording(self, model: nn.Module) -> Recording | RecordStatistics:
        # A tape costs memory: there is one only where it can be replayed.
        if isinstance(view_of(model), StagedView):
            return Recording(keep_inputs=self.attack_bn == "batch")
        return RecordStatistics()

    def attack(
        self,
        model: nn.Module,
        x: Tensor,
        targets: Tensor,
        clean: CleanForward,
        rows: Rows = ALL_ROWS,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        require_whole(model, x, clean.recording)
        view, x = view_of(model), x.detach()
        chosen = rows.of(x)
        step_size, epsilon = self.pixel_limits(model, x, rows)
        lower, upper = pixel_range(model, x) if self.clamp else (None, None)
        perturbed, failed = chosen, torch.zeros(len(chosen), dtype=torch.bool, device=x.device)
        with running_statistics_untouched(model):
            for step in range(self.steps):
                gradient, loss = self._pixel_gradient(view, x, perturbed, targets, clean, rows, step)
                failed |= ~loss.isfinite()
                # The first step starts at the clean clips, which are read anyway.
                start = None if step == 0 else perturbed
                perturbed = ops.pgd_step(start, gradient, chosen, step_size, epsilon, lower, upper)
        return perturbed, failed

    def _pixel_gradient(
        self,
        view: ModelView,
        x: Tensor,
        perturbed: Tensor,
        targets: Tensor,
        clean: CleanForward,
        rows: Rows,
        step: int,
    ) -> PixelGradient:
        batch = self.attack_bn == "batch"
        if step == 0:
            found = replayed(self.objective, view, clean, x, targets, rows, through_statistics=batch)
            if found is not None:
                return found
        if batch:
            return coupled(self.objective, view, x, perturbed, targets, rows)
        if clean.recording is None:
            raise ValueError("the clean forward was not recorded: run it within augment.recording(model)")
        return frozen(self.objective, view, perturbed, rows.of(targets), clean.recording.constant)


def require_choices(choices: Mapping[str, tuple[str, ...]], **given: str) -> None:
    """Raise ValueError unless every option is one of its choices."""
    for name, value in given.items():
        if value not in choices[name]:
            raise ValueError(f"{name} must be one of {', '.join(choices[name])}, got {value!r}")
