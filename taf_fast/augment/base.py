"""The interface of augmentations whose clips go through the adversarial batch norms."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from numbers import Real

import torch
from torch import Tensor, nn

from taf_fast.augment.batch_statistics import RecordStatistics
from taf_fast.augment.model_state import running_statistics_untouched
from taf_fast.augment.options import AMOUNT, Shown
from taf_fast.augment.pixel_gradient import CleanForward
from taf_fast.augment.rows import ALL_ROWS, Rows
from taf_fast.models.contract import StagedView, normalisation_of, view_of
from taf_fast.models.pixels import pixel_units, to_model_input
from taf_fast.ops.checks import require_classes


class Augment(Shown, ABC):
    """Clips within an L-infinity ball of radius ``epsilon`` around the clean ones.

    Args:
        epsilon, step_size: amounts of pixels, from 0 to 1; divided by the model's ``std``. A number,
            or a tensor [B] with one for each clip of the batch.
        clamp: keep the result in the range of pixels.

    Raises:
        ValueError: an option is out of its range.
    """

    def __init__(self, epsilon: float | Tensor, step_size: float | Tensor, clamp: bool):
        for name, value in (("epsilon", epsilon), ("step_size", step_size)):
            if not isinstance(value, (Real, Tensor)):
                raise ValueError(f"{name} must be a number or a torch.Tensor, got {type(value).__name__}")
            values = value.flatten().tolist() if isinstance(value, Tensor) else [value]
            if not all(0 <= v <= 1 for v in values):
                raise ValueError(f"{name} must be {AMOUNT}, got {value}")
        self.epsilon = epsilon
        self.step_size = step_size
        self.clamp = clamp

    def __call__(
        self, model: nn.Module, clips: Tensor, labels: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Perturb every clip.

        Args:
            model: in the mode that the attack should see (train, as in the paper, or eval). It has
                ``features`` and ``head``, or comes from :func:`taf_fast.adapt`; see
                :mod:`taf_fast.models.contract`.
            clips: [B,T,3,H,W] as the model takes them, or uint8 [B,T,H,W,3].
            labels: int64 [B], the true classes.
            generator: draws the random attack labels; the global one if None.

        Returns:
            The perturbed clips as the model takes them: [B,T,3,H,W], no gradient attached.

        Raises:
            ValueError: shapes or dtypes that do not fit, labels out of range, or clips with NaN or infinity.
        """
        x = to_model_input(model, clips)
        self.check(model, x, labels)
        view = view_of(model)
        with torch.no_grad(), running_statistics_untouched(model), self.recording(model) as recording:
            if isinstance(view, StagedView):
                logits, _, stages = view.forward(x)
            else:
                stages = None
                _, logits = view.features_and_logits(x)
        require_classes("labels", labels, logits.shape[1])
        targets = self.attack_labels(logits, labels, generator)
        return self.attack(model, x, targets, CleanForward(recording, stages), generator=generator)[0]

    def check(self, model: nn.Module, x: Tensor, labels: Tensor) -> None:
        """Raise ValueError unless the labels fit the clips [B,T,3,H,W], the clips fit the options, and the
        perturbation of the model's clips is defined."""
        require_labels(labels, x)
        normalisation_of(model)
        for name, value in (("epsilon", self.epsilon), ("step_size", self.step_size)):
            if isinstance(value, Tensor) and value.shape != x.shape[:1]:
                raise ValueError(
                    f"{name} must be a number, or one for each of the {len(x)} clips, got {list(value.shape)}"
                )

    def pixel_limits(self, model: nn.Module, x: Tensor, rows: Rows) -> tuple[float | Tensor, float | Tensor]:
        """The step size and epsilon of the chosen rows in the units of the model's input, as
        :func:`taf_fast.models.pixels.pixel_units` returns them."""
        step_size, epsilon = (
            pixel_units(model, rows.of(value.to(x.device)) if isinstance(value, Tensor) else value, x)
            for value in (self.step_size, self.epsilon)
        )
        return step_size, epsilon

    def recording(self, model: nn.Module) -> AbstractContextManager[RecordStatistics | None]:
        """The context that the clean forward of ``model`` has to run in, for :meth:`attack`."""
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
        rows: Rows = ALL_ROWS,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Perturb some clips of a batch, given its clean forward.

        Args:
            model, x: the model and its full clean batch [B,T,3,H,W].
            targets: y^, int64 [B].
            clean: the clean forward of ``x``; its recording is used up.
            rows: the n clips to perturb.
            generator: for the random numbers of the perturbation itself; the global one if None.

        Returns:
            The perturbed clips [n,T,3,H,W], without gradient; and bool [n], true for a clip whose objective
            was NaN or infinite at some step, so that there was no direction to move it in.
        """


def require_labels(labels: Tensor, x: Tensor) -> None:
    """Raise ValueError unless the labels are int64 [B] on the device of the clips [B,T,3,H,W]."""
    if not isinstance(labels, Tensor):
        raise ValueError(f"expected labels as a torch.Tensor, got {type(labels).__name__}")
    if labels.device != x.device:
        raise ValueError(f"expected labels on the clips' device {x.device}, got {labels.device}")
    if labels.shape != x.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"expected int64 labels of shape [{x.shape[0]}], got {labels.dtype} {list(labels.shape)}"
        )


def require_steps(steps: int) -> None:
    """Raise ValueError unless there is at least one step."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")


def random_other_class(labels: Tensor, classes: int, generator: torch.Generator | None) -> Tensor:
    """One of the other classes for each label [B], uniformly.

    Raises:
        ValueError: there is no other class.
    """
    if classes < 2:
        raise ValueError(f"a random other class needs at least 2 classes, the model has {classes}")
    return (labels + _draw(1, classes, labels, generator)) % classes


def random_class(labels: Tensor, classes: int, generator: torch.Generator | None) -> Tensor:
    """One of all classes for each label [B], uniformly."""
    return (labels + _draw(0, classes, labels, generator)) % classes


def _draw(low: int, high: int, labels: Tensor, generator: torch.Generator | None) -> Tensor:
    device = labels.device if generator is None else generator.device
    return torch.randint(low, high, labels.shape, generator=generator, device=device).to(labels.device)
