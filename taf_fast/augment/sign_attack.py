"""Eq. 6 for any objective: sign-gradient ascent on the pixels, from what one clean forward left behind."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from taf_fast import ops
from taf_fast.adapt import features_and_logits, has_stages, stages
from taf_fast.batch_statistics import FreezeStatistics, RecordStatistics, running_statistics_untouched
from taf_fast.clips import pixel_range, pixel_units
from taf_fast.replay import NotReplayable, Recording, Replay

from .base import Augment, CleanForward, random_other_class, require_steps

_CHOICES = {"attack_bn": ("frozen", "batch"), "label": ("outcome", "true", "random")}


class SignAttack(Augment):
    """``steps`` times ``x <- clip(x + step_size sgn(dL/dx))``, clipped into the L-infinity ball of radius
    ``epsilon`` around the clean clip, then into the range of pixels (Eq. 6). The objective L, a number per
    clip, is the subclass's. y^ stays over the steps; running statistics and parameters are left as they are.

    Args:
        epsilon, step_size: in pixels of range [0,1]; at least 0. Translated by the model's ``std``.
        steps: K, at least 1.
        attack_bn: ``"frozen"`` takes the batch statistics of the clean forward as constants, which
            makes the gradient that of every clip alone; ``"batch"`` differentiates through them,
            over the full batch. A model in eval mode normalises by its running statistics.
        label: y^. ``"outcome"``: a random other class where the clip is classified correctly, the
            true class where it is not. Or always ``"true"``, or always ``"random"`` (other than true).
        clamp: keep the result in the range of pixels.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(self, epsilon: float, step_size: float, steps: int, attack_bn: str, label: str, clamp: bool):
        super().__init__(epsilon, step_size, clamp)
        require_steps(steps)
        require_choices(_CHOICES, attack_bn=attack_bn, label=label)
        self.steps, self.attack_bn, self.label = steps, attack_bn, label

    def attack_labels(self, logits: Tensor, labels: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.label == "true":
            return labels
        other = random_other_class(labels, logits.shape[1], generator)
        if self.label == "random":
            return other
        return torch.where(logits.argmax(1) == labels, other, labels)

    def recording(self, model: nn.Module) -> Recording | RecordStatistics:
        # A tape costs memory, so there is one only where it can be replayed.
        return Recording(keep_inputs=self.attack_bn == "batch") if has_stages(model) else RecordStatistics()

    def attack(
        self,
        model: nn.Module,
        x: Tensor,
        targets: Tensor,
        clean: CleanForward,
        rows: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        x = x.detach()
        chosen = x if rows is None else x[rows]
        step_size, epsilon = (pixel_units(model, v, x) for v in (self.step_size, self.epsilon))
        lower, upper = pixel_range(model, x) if self.clamp else (None, None)
        perturbed, failed = chosen, torch.zeros(len(chosen), dtype=torch.bool, device=x.device)
        with running_statistics_untouched(model):
            for step in range(self.steps):
                # The first step is at the clean clips, whose forward there has been.
                replay = self._replay(model, x, clean, rows) if step == 0 else None
                if replay is not None:
                    gradient, loss = self._replayed_gradient(model, targets, clean, rows, replay)
                    del replay
                    clean.recording.free()
                elif self.attack_bn == "batch":
                    gradient, loss = self._coupled_gradient(model, x, targets, rows, perturbed)
                else:
                    with FreezeStatistics(clean.recording.calls):
                        gradient, loss = self._gradient(
                            model, perturbed, targets if rows is None else targets[rows]
                        )
                failed |= ~loss.isfinite()
                # The first step starts at the clean clip: nothing but that needs to be read.
                start = None if step == 0 else perturbed
                perturbed = ops.pgd_step(start, gradient, chosen, step_size, epsilon, lower, upper)
        return perturbed, failed

    @abstractmethod
    def _objective(
        self, features: Tensor, logits: Tensor, targets: Tensor, rows
    ) -> tuple[Tensor, Tensor | None]:
        """L [n] of the rows, differentiable, from features [B,T,C,h,w] and logits [B,classes]; and the frames
        [n,N] that may move, None for all."""

    # Each of the following gives d(sum of L)/dx of the clips to perturb, [n,T,3,H,W], exactly 0 for
    # frames that may not move; and L [n].

    def _gradient(self, model: nn.Module, x: Tensor, targets: Tensor, rows=slice(None)):
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            if has_stages(model):
                parts = stages(model, x)
                gradients, loss, frames = self._head_gradients(model, parts, targets, rows)
                (gradient,) = torch.autograd.grad(parts, x, gradients)
            else:
                loss, frames = self._objective(*features_and_logits(model, x), targets, rows)
                (gradient,) = torch.autograd.grad(loss.sum(), x)
        return _where_movable(gradient[rows], frames), loss.detach()

    def _coupled_gradient(self, model, x, targets, rows, perturbed):
        if rows is None:
            return self._gradient(model, perturbed, targets)
        batch = x.clone()
        batch[rows] = perturbed
        return self._gradient(model, batch, targets, rows)

    def _replayed_gradient(self, model, targets, clean: CleanForward, rows, replay: Replay):
        rows = slice(None) if rows is None else rows
        if self.attack_bn == "batch":
            gradients, loss, frames = self._head_gradients(model, clean.stages, targets, rows)
            return _where_movable(replay.gradient(gradients)[rows], frames), loss
        with FreezeStatistics(clean.recording.calls[replay.norms :]):
            gradients, loss, frames = self._head_gradients(
                model, tuple(part[rows] for part in clean.stages), targets[rows]
            )
        return _where_movable(replay.gradient(gradients), frames), loss

    def _replay(self, model: nn.Module, x: Tensor, clean: CleanForward, rows: Tensor | None) -> Replay | None:
        if not clean.stages:
            return None
        try:
            return Replay(
                lambda clips: stages(model, clips),
                clean.recording,
                x,
                None if self.attack_bn == "batch" else rows,
            )
        except NotReplayable:
            return None

    def _head_gradients(self, model, parts, targets, rows=slice(None)):
        """From what the head takes: d(sum over rows of L)/d(parts), L [n] and the frames that may move."""
        leaves = tuple(part.detach().requires_grad_() for part in parts)
        with torch.enable_grad():
            loss, frames = self._objective(leaves[0], model.head(*leaves), targets, rows)
            return torch.autograd.grad(loss.sum(), leaves), loss.detach(), frames


def require_choices(choices: dict[str, tuple[str, ...]], **given: str) -> None:
    """Raise ValueError unless every option is one of its choices."""
    for name, value in given.items():
        if value not in choices[name]:
            raise ValueError(f"{name} must be one of {', '.join(choices[name])}, got {value!r}")


def _where_movable(gradient: Tensor, frames: Tensor | None) -> Tensor:
    if frames is None:
        return gradient
    moves = torch.zeros(gradient.shape[:2], dtype=gradient.dtype, device=gradient.device)
    return gradient * moves.scatter(1, frames, 1)[:, :, None, None, None]
