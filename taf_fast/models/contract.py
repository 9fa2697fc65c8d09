"""What the augmentations and the training steps ask of a model, and one view of everything that fulfils it.

A video classifier is a module that takes clips [B,T,3,H,W] to logits [B,classes]. That is all that plain
fine-tuning, noise and AdvProp need. The attacks on attention also need the features that the logits follow
from, which a model offers in one of three forms:

- :class:`FeatureModel`: ``head(features(clips))`` are the logits;
- :class:`StagedModel`: the head takes more than the features, ``head(*stages(clips))``;
- :class:`WholeModel`: one call gives the features and the logits, as :func:`taf_fast.adapt` does for any
module.

It may offer more: :class:`HasAuxiliaryHead`, :class:`HasLinearHead`, and ``mean`` and ``std``, the
normalisation of its input. :func:`view_of` is the one place that looks for these.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary


class FeatureModel(Protocol):
    """A model in two parts."""

    def features(self, clips: Tensor, /) -> Tensor:
        """Clips [B,T,3,H,W] -> the features [B,T,C,h,w] that the CAM is taken of."""
        ...

    def head(self, features: Tensor, /) -> Tensor:
        """Features [B,T,C,h,w] -> logits [B,classes]."""
        ...


class StagedModel(Protocol):
    """A model in two parts whose head takes several tensors."""

    def stages(self, clips: Tensor, /) -> tuple[Tensor, ...]:
        """Clips [B,T,3,H,W] -> the arguments of ``head``: the features [B,T,C,h,w] first; the others begin
        with the batch dimension."""
        ...

    def head(self, *stages: Tensor) -> Tensor:
        """The outputs of ``stages`` -> logits [B,classes]."""
        ...


class WholeModel(Protocol):
    """A model whose features are not the whole input of what follows, or whose parts cannot be called
    alone."""

    def features_and_logits(self, clips: Tensor, /) -> tuple[Tensor, Tensor]:
        """Clips [B,T,3,H,W] -> features [B,T,C,h,w] and the logits [B,classes] computed from exactly
        these."""
        ...


class HasAuxiliaryHead(Protocol):
    """A staged model with a second classifier whose cross-entropy is added to the training loss (TPN)."""

    #: Weight of the auxiliary cross-entropy; that of the logits has weight 1.
    auxiliary_weight: float

    def auxiliary_head(self, *stages: Tensor) -> Tensor:
        """The outputs of ``stages`` -> auxiliary logits [B,classes]."""
        ...


class HasLinearHead(Protocol):
    """A model whose ``head`` is: mean over h,w, this dropout, this linear layer, mean over frames. The
    gradient of the attention loss then has a closed form (:func:`taf_fast.ops.cam_gradient`)."""

    @property
    def linear_head(self) -> tuple[nn.Dropout, nn.Linear]: ...


class Normalisation(NamedTuple):
    """A model takes clips as (pixels - mean) / std, with pixels in [0,1]: sequences or tensors [3]."""

    mean: Any
    std: Any


class ForwardOutput(NamedTuple):
    """What a training forward of B clips gives.

    ``logits`` and, of a model with an auxiliary head, ``auxiliary`` are [B,classes], with gradient.
    ``stages`` are the arguments of the head, without gradient; None for a model that is not in two parts.
    """

    logits: Tensor
    auxiliary: Tensor | None
    stages: tuple[Tensor, ...] | None


class ModelView(ABC):
    """How the augmentations and the steps see a model. See :class:`StagedView` and :class:`WholeView`."""

    def __init__(self, model: nn.Module):
        self.model = model

    @abstractmethod
    def forward(self, clips: Tensor) -> ForwardOutput:
        """Clips [B,T,3,H,W] -> the logits, and what the training loss and the attack need in addition."""

    @property
    @abstractmethod
    def auxiliary_weight(self) -> float:
        """Weight of the auxiliary cross-entropy in the training loss; 0 for a model without auxiliary
        head."""

    @abstractmethod
    def features_and_logits(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Clips [B,T,3,H,W] -> features [B,T,C,h,w] and the logits [B,classes] computed from them.

        Raises:
            ValueError: the model offers no features.
        """


class StagedView(ModelView):
    """A model in two parts, a :class:`StagedModel` or a :class:`FeatureModel`."""

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self._several = offered(model, "stages") is not None

    def stages(self, clips: Tensor) -> tuple[Tensor, ...]:
        """As :meth:`StagedModel.stages`; the features alone of a :class:`FeatureModel`."""
        model: Any = self.model
        return model.stages(clips) if self._several else (model.features(clips),)

    def head(self, *stages: Tensor) -> Tensor:
        """As :meth:`StagedModel.head`."""
        model: Any = self.model
        return model.head(*stages)

    @property
    def linear_head(self) -> tuple[nn.Dropout, nn.Linear] | None:
        """As :attr:`HasLinearHead.linear_head`; None for any other head."""
        return offered(self.model, "linear_head")

    def forward(self, clips: Tensor) -> ForwardOutput:
        stages = self.stages(clips)
        logits = self.head(*stages)
        # The auxiliary head comes last: the batch norms of this forward begin as those of the attack's do.
        auxiliary = None if self.auxiliary_head is None else self.auxiliary_head(*stages)
        return ForwardOutput(logits, auxiliary, tuple(stage.detach() for stage in stages))

    def features_and_logits(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        stages = self.stages(clips)
        return stages[0], self.head(*stages)

    @property
    def auxiliary_head(self) -> Callable[..., Tensor] | None:
        """As :meth:`HasAuxiliaryHead.auxiliary_head`; None for a model without one."""
        return offered(self.model, "auxiliary_head")

    @property
    def auxiliary_weight(self) -> float:
        return offered(self.model, "auxiliary_weight") or 0.0


class WholeView(ModelView):
    """A model that is called as a whole; it may give its features too (:class:`WholeModel`)."""

    @property
    def auxiliary_weight(self) -> float:
        return 0.0

    def forward(self, clips: Tensor) -> ForwardOutput:
        return ForwardOutput(self.model(clips), None, None)

    def features_and_logits(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        both = offered(self.model, "features_and_logits")
        if both is None:
            lacking = [name for name in ("features", "head") if offered(self.model, name) is None]
            raise ValueError(
                f"{type(self.model).__name__} has no .{' and no .'.join(lacking)}: give it "
                "features(clips) and head(features), or wrap it with "
                "taf_fast.adapt(model, layer=..., num_segments=...)"
            )
        return both(clips)


def view_of(model: nn.Module) -> ModelView:
    """The view of a model by what it offers: :class:`StagedView` for one in two parts, else
    :class:`WholeView`."""
    parts = {name for name in ("features", "stages", "head") if offered(model, name) is not None}
    if "head" in parts and len(parts) > 1:
        return StagedView(model)
    return WholeView(model)


def normalisation_of(model: nn.Module) -> Normalisation | None:
    """The normalisation of the model's input; None where it lacks ``mean`` or ``std`` and takes pixels in
    [0,1].

    Raises:
        ValueError: they are not three values each, or not those of pixels in [0,1].
    """
    mean, std = offered(model, "mean"), offered(model, "std")
    if mean is None or std is None:
        return None
    return Normalisation(_of_channels("mean", mean), _of_channels("std", std))


def _of_channels(name: str, values: Any) -> Tensor | tuple[float, ...]:
    """Three values in the range of ``name``, of a tensor [3], [3,1,1], ..., or of a sequence."""
    if isinstance(values, Tensor):
        if values not in _CHECKED:  # reading them waits for the device
            _require_three(name, values.flatten().tolist(), list(values.shape))
            _CHECKED[values] = True
        return values.flatten()
    try:
        numbers = tuple(map(float, values))
    except TypeError:
        numbers = ()
    _require_three(name, numbers, values)
    return numbers


_CHECKED = WeakIdKeyDictionary()


def _require_three(name: str, numbers: Sequence[float], given: Any) -> None:
    if len(numbers) != 3:
        raise ValueError(f"the model's {name} must have a value for each of 3 channels, got {given}")
    least = 0.0 if name == "mean" else math.ulp(0.0)
    if not all(least <= number <= 1 for number in numbers):
        raise ValueError(
            f"the model's {name} must be that of pixels in [0,1], got {list(numbers)}: "
            "values for pixels in [0,255] are divided by 255"
        )


def offered(model: nn.Module, name: str) -> Any:
    """An attribute of the model; None where it lacks it. ``isinstance`` with a protocol would not see
    submodules."""
    return getattr(model, name, None)
