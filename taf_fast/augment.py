"""Temporal augmentation (TA): perturb clips so that the least attended frames gain attention."""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taf_fast import ops
from taf_fast.adapt import features_and_logits, has_stages, stages
from taf_fast.batch_statistics import FreezeStatistics, RecordStatistics, running_statistics_untouched
from taf_fast.clips import pixel_range, pixel_units, to_model_input
from taf_fast.replay import NotReplayable, Recording, Replay

_CHOICES = {
    "denominator": ("max", "range"),
    "attack_bn": ("frozen", "batch"),
    "gradient": ("loss", "logit"),
    "label": ("outcome", "true", "random"),
    "perturb": ("all", "selected"),
}


@dataclasses.dataclass(frozen=True)
class CleanForward:
    """What the clean forward of a batch showed: its recording, and the arguments of the model's head
    (empty for a model that does not come in two parts, whose statistics alone count)."""

    recording: Recording | RecordStatistics
    stages: tuple[Tensor, ...]


class TemporalAugment:
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
        for name, value in (("epsilon", epsilon), ("step_size", step_size)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number of at least 0, got {value}")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if num_frames is not None and num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {num_frames}")
        chosen = dict(
            denominator=denominator, attack_bn=attack_bn, gradient=gradient, label=label, perturb=perturb
        )
        for name, value in chosen.items():
            if value not in _CHOICES[name]:
                raise ValueError(f"{name} must be one of {', '.join(_CHOICES[name])}, got {value!r}")
        self.epsilon, self.step_size, self.steps, self.num_frames = epsilon, step_size, steps, num_frames
        self.denominator, self.attack_bn, self.gradient = denominator, attack_bn, gradient
        self.label, self.perturb, self.relu, self.clamp = label, perturb, relu, clamp

    def __call__(
        self, model: nn.Module, clips: Tensor, labels: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Perturb every clip.

        Args:
            model: in the mode the attack is to see (train, as in the paper, or eval). Has
                ``features`` and ``head``, or comes from :func:`taf_fast.adapt`.
            clips: [B,T,3,H,W] as the model takes them, or uint8 [B,T,H,W,3].
            labels: int64 [B], the true classes.
            generator: draws the random attack labels; the global one if None.

        Returns:
            The perturbed clips as the model takes them: [B,T,3,H,W], no gradient attached.

        Raises:
            ValueError: shapes that do not fit, N > T, features without a frame for each of the clip's,
                or NaN or infinity in the clips.
        """
        x = to_model_input(model, clips)
        self.check(x, labels)
        with torch.no_grad(), running_statistics_untouched(model), self.recording(model) as recording:
            parts = stages(model, x) if has_stages(model) else ()
            logits = model.head(*parts) if parts else features_and_logits(model, x)[1]
        targets = self.attack_labels(logits, labels, generator)
        return self.attack(model, x, targets, CleanForward(recording, parts))[0]

    def check(self, x: Tensor, labels: Tensor) -> None:
        """Raise ValueError unless labels fit the clips [B,T,3,H,W] and N fits their T."""
        if labels.shape != x.shape[:1] or labels.dtype != torch.int64:
            raise ValueError(
                f"expected int64 labels of shape [{x.shape[0]}], got {labels.dtype} {list(labels.shape)}"
            )
        if self.num_frames is not None and self.num_frames > x.shape[1]:
            raise ValueError(
                f"num_frames must be at most the clip's {x.shape[1]} frames, got {self.num_frames}"
            )

    def attack_labels(self, logits: Tensor, labels: Tensor, generator: torch.Generator | None) -> Tensor:
        """y^ [B] from the clean logits [B,classes] and the true labels [B]."""
        classes = logits.shape[1]
        if self.label == "true":
            return labels
        if classes < 2:
            raise ValueError(f"a random other class needs at least 2 classes, the model has {classes}")
        device = labels.device if generator is None else generator.device
        offset = torch.randint(1, classes, labels.shape, generator=generator, device=device)
        other = (labels + offset.to(labels.device)) % classes
        if self.label == "random":
            return other
        return torch.where(logits.argmax(1) == labels, other, labels)

    def recording(self, model: nn.Module) -> Recording | RecordStatistics:
        """What a clean forward of ``model`` is to run in, for :meth:`attack`: a tape costs memory, so there
        is one only where it can be replayed."""
        return Recording(keep_inputs=self.attack_bn == "batch") if has_stages(model) else RecordStatistics()

    def attack(
        self, model: nn.Module, x: Tensor, targets: Tensor, clean: CleanForward, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Eq. 6 for chosen clips of a batch, given what its clean forward showed.

        Args:
            model, x: the model and its full clean batch [B,T,3,H,W].
            targets: y^, int64 [B].
            clean: of ``x``; its tape is used up.
            rows: int64 [n], the clips to perturb; None for all.

        Returns:
            The perturbed clips [n,T,3,H,W], without gradient; and bool [n], true where L_C was NaN or
            infinite at some step, so that there was nowhere to move such a clip.
        """
        if clean.stages:
            _require_frames(clean.stages[0], x)
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

    # Each of the following gives d(sum of L_C)/dx of the clips to perturb, [n,T,3,H,W], exactly 0 for
    # frames that may not move; and L_C [n].

    def _gradient(self, model: nn.Module, x: Tensor, targets: Tensor, rows=slice(None)):
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            if has_stages(model):
                parts = stages(model, x)
                gradients, loss, frames = self._head_gradients(model, parts, targets, rows)
                (gradient,) = torch.autograd.grad(parts, x, gradients)
            else:
                loss, frames = self._attention_loss(*features_and_logits(model, x), targets, rows)
                (gradient,) = torch.autograd.grad(loss.sum(), x)
        return self._where_movable(gradient[rows], frames), loss.detach()

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
            return self._where_movable(replay.gradient(gradients)[rows], frames), loss
        with FreezeStatistics(clean.recording.calls[replay.norms :]):
            gradients, loss, frames = self._head_gradients(
                model, tuple(part[rows] for part in clean.stages), targets[rows]
            )
        return self._where_movable(replay.gradient(gradients), frames), loss

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
        """From what the head takes: d(sum over rows of L_C)/d(parts), L_C and the selected frames."""
        if hasattr(model, "linear_head") and self.gradient == "loss" and not self.relu:
            gradient, loss, frames = self._through_linear_head(model, parts[0].detach()[rows], targets[rows])
            if len(gradient) < len(parts[0]):
                gradient = torch.zeros_like(parts[0]).index_copy_(0, rows, gradient)
            return (gradient,), loss, frames
        leaves = tuple(part.detach().requires_grad_() for part in parts)
        with torch.enable_grad():
            loss, frames = self._attention_loss(leaves[0], model.head(*leaves), targets, rows)
            return torch.autograd.grad(loss.sum(), leaves), loss.detach(), frames

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

    def _attention_loss(self, features, logits, targets, rows):
        """L_C [n] of the rows, differentiable, and the selected frames [n,N]: Eqs. 2 to 5."""
        if self.gradient == "loss":
            objective = F.cross_entropy(logits[rows], targets[rows], reduction="sum")
        else:
            objective = logits[rows].gather(1, targets[rows, None]).sum()
        (weights,) = torch.autograd.grad(objective, features, create_graph=True)
        cam = ops.frame_cam(features, weights, relu=self.relu)[rows]
        num_frames = self.num_frames or features.shape[1]
        loss, _, frames = ops.cam_loss(cam, num_frames, denominator=self.denominator)
        return loss, frames

    def _where_movable(self, gradient: Tensor, frames: Tensor) -> Tensor:
        if self.perturb == "all":
            return gradient
        moves = torch.zeros(gradient.shape[:2], dtype=gradient.dtype, device=gradient.device)
        return gradient * moves.scatter(1, frames, 1)[:, :, None, None, None]


def _require_frames(features: Tensor, x: Tensor) -> None:
    if features.shape[1] != x.shape[1]:
        raise ValueError(
            f"the model's features have {features.shape[1]} frames, expected one for each of the clip's "
            f"{x.shape[1]}: a model with a temporal stride has no CAM per frame"
        )
