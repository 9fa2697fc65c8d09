"""What a training step asks of an augmentation whose clips go through the adversarial batch norms."""

import dataclasses
import math
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from taf_fast.adapt import features_and_logits, has_stages, stages
from taf_fast.batch_statistics import RecordStatistics, running_statistics_untouched
from taf_fast.clips import to_model_input
from taf_fast.replay import Recording


@dataclasses.dataclass(frozen=True)
class CleanForward:
    """What the clean forward of a batch showed: its recording, and the arguments of the model's head
    (empty for a model that does not come in two parts, whose statistics alone count)."""

    recording: Recording | RecordStatistics | None
    stages: tuple[Tensor, ...]


class Augment(ABC):
    """Clips within an L-infinity ball of radius ``epsilon`` around the clean ones.

    Args:
        epsilon, step_size: in pixels of range [0,1]; at least 0. Translated by the model's ``std``.
        clamp: keep the result in the range of pixels.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(self, epsilon: float, step_size: float, clamp: bool):
        for name, value in (("epsilon", epsilon), ("step_size", step_size)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number of at least 0, got {value}")
        self.epsilon, self.step_size, self.clamp = epsilon, step_size, clamp

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
            ValueError: shapes that do not fit, or NaN or infinity in the clips.
        """
        x = to_model_input(model, clips)
        self.check(x, labels)
        with torch.no_grad(), running_statistics_untouched(model), self.recording(model) as recording:
            parts = stages(model, x) if has_stages(model) else ()
            logits = model.head(*parts) if parts else features_and_logits(model, x)[1]
        targets = self.attack_labels(logits, labels, generator)
        return self.attack(model, x, targets, CleanForward(recording, parts), generator=generator)[0]

    def check(self, x: Tensor, labels: Tensor) -> None:
        """Raise ValueError unless labels fit the clips [B,T,3,H,W], and these the options."""
        if labels.shape != x.shape[:1] or labels.dtype != torch.int64:
            raise ValueError(
                f"expected int64 labels of shape [{x.shape[0]}], got {labels.dtype} {list(labels.shape)}"
            )

    def recording(self, model: nn.Module) -> AbstractContextManager:
        """What the clean forward of ``model`` is to run in, for :meth:`attack`."""
        return nullcontext()

    def attack_labels(self, logits: Tensor, labels: Tensor, generator: torch.Generator | None) -> Tensor:
        """y^ [B] from the clean logits [B,classes] and the true labels [B]."""
        return labels

    @abstractmethod
    def attack(
        self,
        model: nn.Module,
        x: Tensor,
        targets: Tensor,
        clean: CleanForward,
        rows: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Perturb chosen clips of a batch, given what its clean forward showed.

        Args:
            model, x: the model and its full clean batch [B,T,3,H,W].
            targets: y^, int64 [B].
            clean: of ``x``; its tape is used up.
            rows: int64 [n], the clips to perturb; None for all.
            generator: for what the perturbation itself draws; the global one if None.

        Returns:
            The perturbed clips [n,T,3,H,W], without gradient; and bool [n], true where there was nowhere to
            move a clip, because what the attack ascends was NaN or infinite at some step.
        """


def require_steps(steps: int) -> None:
    """Raise ValueError unless there is at least one step."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")


def random_other_class(labels: Tensor, classes: int, generator: torch.Generator | None) -> Tensor:
    """For each label [B] one of the other classes, uniformly.

    Raises:
        ValueError: there is no other.
    """
    if classes < 2:
        raise ValueError(f"a random other class needs at least 2 classes, the model has {classes}")
    return (labels + _draw(1, classes, labels, generator)) % classes


def random_class(labels: Tensor, classes: int, generator: torch.Generator | None) -> Tensor:
    """For each label [B] one of all classes, uniformly."""
    return (labels + _draw(0, classes, labels, generator)) % classes


def _draw(low: int, high: int, labels: Tensor, generator: torch.Generator | None) -> Tensor:
    device = labels.device if generator is None else generator.device
    return torch.randint(low, high, labels.shape, generator=generator, device=device).to(labels.device)
