"""The gradient of an objective with respect to the pixels, the derivative in Eq. 6, in each way it can be
had.

===================  ==========================  =========================================================
function             batch statistics            forwards of the trunk
===================  ==========================  =========================================================
:func:`replayed`     constant or differentiated  none: it goes back through what the clean forward recorded
:func:`frozen`       constant                    one, of the attacked clips
:func:`coupled`      differentiated              one, of the whole batch
===================  ==========================  =========================================================

The first attack step is at the clean clips, whose forward there has been: it is replayed where the model
allows it.
"""

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from taf_fast.augment.batch_statistics import FreezeStatistics, RecordStatistics
from taf_fast.augment.options import Shown
from taf_fast.augment.replay import NotReplayable, Recording, Replay
from taf_fast.augment.replay_graph import ReplayGraphs
from taf_fast.augment.rows import ALL_ROWS, Rows
from taf_fast.models.contract import ModelView, StagedView
from taf_fast.models.recomputation import differentiable_twice


@dataclass(frozen=True)
class CleanForward:
    """What the clean forward of a batch left for the attack.

    Attributes:
        recording: what :meth:`taf_fast.augment.Augment.recording` yielded; None where nothing was recorded.
        stages: the arguments of the model's head, without gradient; None for a model that is not in two
            parts.
        graphs: the replays of this model that are traced; None to trace none.
    """

    recording: RecordStatistics | None
    stages: tuple[Tensor, ...] | None
    graphs: ReplayGraphs | None = None


class ObjectiveValue(NamedTuple):
    """``loss`` [n], float, of each attacked clip, differentiable in features and logits; ``movable`` int64
    [n,N], the frames that may move, or None for all."""

    loss: Tensor
    movable: Tensor | None


class HeadGradients(NamedTuple):
    """``gradients`` of the summed loss with respect to every stage, each of its shape; ``loss`` and
    ``movable`` as in :class:`ObjectiveValue`, without gradient."""

    gradients: tuple[Tensor, ...]
    loss: Tensor
    movable: Tensor | None


class PixelGradient(NamedTuple):
    """``gradient`` [n,T,3,H,W] of the summed loss with respect to the attacked clips, 0 in frames that may
    not move; ``loss`` [n]."""

    gradient: Tensor
    loss: Tensor


class Objective(Shown, ABC):
    """What an attack raises: a number for every clip, from the model's features and logits."""

    @abstractmethod
    def __call__(self, features: Tensor, logits: Tensor, targets: Tensor, rows: Rows) -> ObjectiveValue:
        """The objective of the attacked clips.

        Args:
            features: [B,T,C,h,w]; part of a graph that leads to ``logits``, so that gradients of the logits
                with respect to the features can be taken (with ``create_graph=True``, to be differentiated
                again).
            logits: [B,classes], computed from ``features``.
            targets: y^, int64 [B].
            rows: which of the B clips are attacked: ``rows.of(tensor)`` are the rows of a tensor [B,...].
        """

    def head_gradients(
        self, view: StagedView, stages: tuple[Tensor, ...], targets: Tensor, rows: Rows
    ) -> HeadGradients:
        """The objective's gradients with respect to the stages [B,...]: by autograd through the head, unless
        the objective knows better."""
        leaves = tuple(stage.detach().requires_grad_() for stage in stages)
        with torch.enable_grad():
            with differentiable_twice():
                logits = view.head(*leaves)
            loss, movable = self(leaves[0], logits, targets, rows)
            return HeadGradients(torch.autograd.grad(loss.sum(), leaves), loss.detach(), movable)


def replayed(
    objective: Objective,
    view: ModelView,
    clean: CleanForward,
    x: Tensor,
    targets: Tensor,
    rows: Rows,
    through_statistics: bool,
) -> PixelGradient | None:
    """The gradient at the clean clips, from what their forward recorded. The recording is used up.

    Args:
        x, targets: the whole batch [B,T,3,H,W], and y^ [B].
        through_statistics: differentiate through the batch statistics, which takes a recording with inputs.

    Returns:
        None for a model that is not in two parts, or whose trunk cannot be replayed.
    """
    recording = clean.recording
    if clean.stages is None or not isinstance(view, StagedView) or not isinstance(recording, Recording):
        return None
    chosen = ALL_ROWS if through_statistics else rows
    stages = tuple(chosen.of(stage) for stage in clean.stages)
    try:
        if clean.graphs is None:
            replay: Any = Replay(view.stages, recording, x, chosen)
        else:
            replay = clean.graphs.replay(view, recording, x, chosen, stages)
    except NotReplayable as reason:
        warnings.warn(
            f"the attack takes a forward of its own, for there is no replay of {reason}", stacklevel=2
        )
        return None
    if through_statistics:
        gradients, loss, movable = objective.head_gradients(view, stages, targets, rows)
        gradient = rows.of(replay.gradient(gradients))
    else:
        # The batch norms of the head follow those of the stages.
        with FreezeStatistics(recording.calls[replay.norms :]):
            gradients, loss, movable = objective.head_gradients(view, stages, rows.of(targets), ALL_ROWS)
        gradient = replay.gradient(gradients)
    recording.free()
    return PixelGradient(_where_movable(gradient, movable), loss)


def frozen(
    objective: Objective, view: ModelView, perturbed: Tensor, targets: Tensor, statistics: FreezeStatistics
) -> PixelGradient:
    """The gradient at ``perturbed`` [n,T,3,H,W] for ``targets`` [n], by a forward with the batch
    ``statistics`` of the clean one as constants: the gradient of every clip alone."""
    with statistics:
        return _by_forward(objective, view, perturbed, targets, ALL_ROWS)


def coupled(
    objective: Objective, view: ModelView, x: Tensor, perturbed: Tensor, targets: Tensor, rows: Rows
) -> PixelGradient:
    """The gradient at ``perturbed`` [n,T,3,H,W], the attacked rows of the batch ``x`` [B,T,3,H,W], by a
    forward of the whole batch, whose statistics are differentiated through."""
    return _by_forward(objective, view, rows.replaced(x, perturbed), targets, rows)


def _by_forward(
    objective: Objective, view: ModelView, x: Tensor, targets: Tensor, rows: Rows
) -> PixelGradient:
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        if isinstance(view, StagedView):
            stages = view.stages(x)
            gradients, loss, movable = objective.head_gradients(view, stages, targets, rows)
            (gradient,) = torch.autograd.grad(stages, x, gradients)
        else:
            with differentiable_twice():
                features, logits = view.features_and_logits(x)
            loss, movable = objective(features, logits, targets, rows)
            (gradient,) = torch.autograd.grad(loss.sum(), x)
    return PixelGradient(_where_movable(rows.of(gradient), movable), loss.detach())


def _where_movable(gradient: Tensor, movable: Tensor | None) -> Tensor:
    if movable is None:
        return gradient
    moves = torch.zeros(gradient.shape[:2], dtype=gradient.dtype, device=gradient.device)
    return gradient * moves.scatter(1, movable, 1)[:, :, None, None, None]
