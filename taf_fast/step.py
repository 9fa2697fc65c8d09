"""One training step: plain fine-tuning, and TAF (Eq. 7)."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from taf_fast.augment import ALL_ROWS, Augment, CleanForward, Mixing, Rows
from taf_fast.augment.base import require_labels
from taf_fast.augment.batch_statistics import single_values_named
from taf_fast.augment.model_state import StateBefore
from taf_fast.augment.replay_graph import ReplayGraphs
from taf_fast.models.batch_counts import counted_at_once
from taf_fast.models.contract import ForwardOutput, ModelView, view_of
from taf_fast.models.dual_batch_norm import (
    adversarial_parameters,
    adversarial_path,
    clean_path,
    count_by_running_statistics,
    require_dual,
)
from taf_fast.models.gradients import all_or_nothing, reaching, same_now, taken_now
from taf_fast.models.modules import parameters_of, walked_once
from taf_fast.models.optimised_twins import require_optimised_twins
from taf_fast.models.pixels import to_model_input
from taf_fast.models.wrappers import is_sharded, refuse_static_graph, refuse_wrapped
from taf_fast.ops.checks import check_classes, require_classes
from taf_fast.process.host_copy import HostCopy

COMPOSITIONS = ("wrong", "all", "correct")

#: (clean logits [B,classes], labels [B]) -> whether to attack each clip, bool [B].
Composition = Callable[[Tensor, Tensor], Tensor]


class StepOutput(TypedDict):
    """What every training step returns: ``loss``, a scalar, and ``logits`` [B,classes], without gradient."""

    loss: Tensor
    logits: Tensor


class PlainStepOutput(StepOutput, total=False):
    """``clean_loss``, a scalar without gradient; absent where clips are mixed."""

    clean_loss: Tensor


class TAFStepOutput(StepOutput):
    """``clean_loss`` and ``adv_loss``, scalars without gradient, the latter 0 when no clip is attacked;
    ``attacked``, the number of attacked clips, and ``failed``, how many of these stayed as they were because
    their attack loss was NaN or infinite; ``by_running_statistics``, the number of adversarial batch norms
    that had one value per channel (of a single attacked clip) and normalised with their running statistics:
    int64 scalars on the host or the device."""

    clean_loss: Tensor
    adv_loss: Tensor
    attacked: Tensor
    failed: Tensor
    by_running_statistics: Tensor


class PlainStep(nn.Module):
    """Fine-tuning without adversarial clips: the baseline for TAF's cost and gain.

    Args:
        model: clips [B,T,3,H,W] -> logits [B,classes].
        compile: compile the forward, and with it the backward.
        mix: train on mixed clips instead of clean ones; the losses of both labels are weighted accordingly.
    """

    def __init__(self, model: nn.Module, compile: bool = True, mix: Mixing | None = None):
        super().__init__()
        self.model = model
        self.mix = mix
        self._view = view_of(model)
        self._forward = _Engine(self._view, compile)

    def forward(
        self, clips: Tensor, labels: Tensor, generator: torch.Generator | None = None
    ) -> PlainStepOutput:
        """As :meth:`TAFStep.forward`, for clean or mixed clips alone. ``generator`` is for mixing."""
        x = to_model_input(self.model, clips)
        require_labels(labels, x)
        if self.mix is None:
            with single_values_named():
                outputs = self._forward(x)
            check_classes("labels", labels, outputs.logits.shape[1])
            loss = _loss(self._view, outputs, labels)
            return {"loss": loss, "clean_loss": loss.detach(), "logits": outputs.logits.detach()}
        x, own, partner = self.mix(x, generator)
        with single_values_named():
            outputs = self._forward(x)
        check_classes("labels", labels, outputs.logits.shape[1])
        loss, partner_loss = (_loss(self._view, outputs, y) for y in (labels, labels[partner]))
        mixed = torch.lerp(partner_loss, loss, own.to(loss.dtype))
        return {"loss": mixed, "logits": outputs.logits.detach()}

    def accumulate_grads(
        self,
        clips: Tensor,
        labels: Tensor,
        generator: torch.Generator | None = None,
        backward: Callable[[Tensor], Any] = Tensor.backward,
    ) -> PlainStepOutput:
        """As :meth:`TAFStep.accumulate_grads`."""
        out = self(clips, labels, generator)
        backward(out["loss"])
        out["loss"] = out["loss"].detach()
        return out


class TAFStep(nn.Module):
    """Temporal adversarial fine-tuning, Eq. 7: alpha CE(clean, y) + (1 - alpha) CE(augmented, y).

    One clean forward gives the clean loss, the attack labels, the selection of clips and the batch
    statistics of the attack. Only the selected clips are attacked and go through the adversarial
    batch norms. Both losses are means over their own clips; when no clip is selected the loss is
    alpha times the clean loss, and the gradients of the adversarial batch norms are 0. A model with an
    auxiliary head (TPN) adds that head's weighted cross-entropy to both; the attack does not see it.

    Where torch.distributed is initialised, all ranks of its default group must call the step the same number
    of times. The adversarial loss is then scaled so that its mean over ranks, and that of its gradients, is
    the mean over the attacked clips of all ranks.

    Args:
        model: with adversarial batch norms (:func:`taf_fast.add_adversarial_bn`), and as
            :mod:`taf_fast.models.contract` says: with ``features`` and ``head``, or wrapped by
            :func:`taf_fast.adapt`.
        augment: the attack: :class:`taf_fast.TemporalAugment`, or one it is compared with.
        alpha: weight of the clean loss, in [0,1].
        composition: which clips are attacked: those classified ``"wrong"`` (the paper's best on
            Something-Something), ``"all"`` (Diving48) or those classified ``"correct"``; or a function of
            the clean logits [B,classes] and the labels [B] that returns whether to attack each clip, bool
            [B].
        compile: compile the clean and the adversarial forward, and with them their backwards.

    Raises:
        ValueError: alpha or composition is out of range, a batch norm has no twin, or one is synchronised
            over ranks (a rank without attacked clips would leave the others waiting), or the model is wrapped
            for several devices, as the step should be.
    """

    def __init__(
        self,
        model: nn.Module,
        augment: Augment,
        alpha: float = 0.7,
        composition: str | Composition = "wrong",
        compile: bool = True,
    ):
        super().__init__()
        _keep_out_of_graphs()
        refuse_wrapped(model)
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be between 0 and 1, got {alpha}")
        if not callable(composition) and composition not in COMPOSITIONS:
            raise ValueError(f"composition must be one of {', '.join(COMPOSITIONS)}, got {composition!r}")
        require_dual(model)
        require_optimised_twins(model)
        if _world_size() > 1 and any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
            raise ValueError("the model has SyncBatchNorm, expected batch norms of each rank's own clips")
        self.model = model
        self.augment = augment
        self.alpha = alpha
        self.composition = composition
        self._view = view_of(model)
        self._clean = _Engine(self._view, compile)
        self._graphs = ReplayGraphs() if compile else None
        # The number of attacked clips changes from step to step: one graph serves them all.
        self._adversarial = _Engine(self._view, compile, any_batch=True)

    def extra_repr(self) -> str:
        return f"augment={self.augment!r}, alpha={self.alpha}, composition={self.composition!r}"

    def forward(
        self,
        clips: Tensor,
        labels: Tensor,
        generator: torch.Generator | None = None,
        backward: Callable[[Tensor], Any] | None = None,
    ) -> TAFStepOutput:
        """Both losses of a batch, for one ``backward()``. Fits into any trainer, and into
        DistributedDataParallel (with ``broadcast_buffers=False``: each rank keeps its running statistics) and
        ``fully_shard``.

        The gradients of the clean part are computed here, before the attack, and added by the backward of
        ``loss``: one graph is alive at a time. Exceptions are float16, which needs the scale of that
        backward, sharded parameters, and leaves that are neither parameters of the model nor the clips: both
        graphs stay.

        Args:
            clips: [B,T,3,H,W] as the model takes them, or uint8 [B,T,H,W,3].
            labels: int64 [B].
            generator: draws the random attack labels.
            backward: for these exceptions: it is called with the clean part of the loss, a scalar, before the
                attack, and the backward of the returned ``loss`` adds the gradients of the adversarial part
                alone. ``torch.Tensor.backward``, or as for :meth:`accumulate_grads`.

        Returns:
            See :class:`TAFStepOutput`; ``loss`` with gradient, ``logits`` those of the clean pass.

        Raises:
            ValueError: shapes or dtypes that do not fit, labels out of range, N > T, or clips with NaN or
                infinity.
            RuntimeError: ``backward`` is given where gradients are off. In the backward of ``loss``: with
                ``create_graph=True``.
        """
        if backward is None:
            with walked_once(self.model):
                return self._report(*self._passes(clips, labels, generator, self._gradients_now))
        refuse_static_graph()
        with walked_once(self.model):
            parameters = _require_gradients(self.model)
            with all_or_nothing(parameters):
                clean, adversarial, logits = self._passes(clips, labels, generator, _run(backward))
        # What waits for the gradient of every parameter gets it in the backward that is left.
        loss = reaching(adversarial.loss, parameters)
        return self._report(clean, adversarial._replace(loss=loss), logits)

    def accumulate_grads(
        self,
        clips: Tensor,
        labels: Tensor,
        generator: torch.Generator | None = None,
        backward: Callable[[Tensor], Any] = Tensor.backward,
    ) -> TAFStepOutput:
        """Runs the backwards itself and adds to the ``grad`` of the parameters; for sharded and float16 steps
        too, one graph is alive at a time.

        Arguments, result (``loss`` without gradient too) and gradients are those of ``forward`` followed by
        ``backward()``. With several ranks and a step that is not sharded, average the gradients before the
        optimiser's step. After an error every ``grad`` is as it was.

        Args:
            backward: called with each part of the loss, a scalar, in place of its ``backward()``:
                ``accelerator.backward``, ``lambda loss: scaler.scale(loss).backward()``, Lightning's
                ``self.manual_backward``.
        """
        if is_sharded(self):  # its parameters are there in a forward and the backward of what that returns
            out = self(clips, labels, generator, backward)
            backward(out["loss"] - self.alpha * out["clean_loss"])
            return out | {"loss": out["loss"].detach()}
        with walked_once(self.model), all_or_nothing(_require_gradients(self.model)):
            clean, adversarial, logits = self._passes(clips, labels, generator, _run(backward))
            if adversarial.loss.requires_grad:
                backward((1 - self.alpha) * adversarial.loss)
        return self._report(clean, adversarial._replace(loss=adversarial.loss.detach()), logits)

    def _passes(
        self,
        clips: Tensor,
        labels: Tensor,
        generator: torch.Generator | None,
        backward: Callable[[Tensor, Tensor], Tensor],
    ) -> tuple["_CleanPass", "_AdversarialPass", Tensor]:
        """-> both passes and the logits. ``backward`` comes before the attack: clean part of the loss, clips
        -> that part, for the backward that is left."""
        x = self._input(clips, labels)
        before = StateBefore(self.model)
        outputs, clean = self._clean_pass(x)
        logits = outputs.logits.detach()
        # A label out of range would end the process on a GPU before the selection can name it.
        in_range = labels.clamp(0, logits.shape[1] - 1)
        clean_loss = _loss(self._view, outputs, in_range)
        del outputs
        # The clips are selected before the backward: while a GPU is busy with that, the host reads how many
        # they are and prepares the attack.
        selection = _Selection(self._to_attack(logits, labels), labels != in_range)
        part = self.alpha * clean_loss
        if part.requires_grad:  # the twins may train alone
            part = backward(part, x)
        clean_pass = _CleanPass(part, clean_loss.detach())
        del part, clean_loss
        adversarial = self._adversarial_pass(x, labels, logits, selection, clean, before, generator)
        return clean_pass, adversarial, logits

    def _gradients_now(self, part: Tensor, x: Tensor) -> Tensor:
        """The clean part of the loss, without its graph where that changes no gradient."""
        inputs = [*parameters_of(self.model), x]
        dtype = torch.get_autocast_dtype(x.device.type)
        if torch.is_autocast_enabled(x.device.type) and dtype == torch.float16:
            return part
        if any(map(is_traceable_wrapper_subclass, inputs)):  # sharded ones, for instance
            return part
        return taken_now(part, inputs) if same_now(part, inputs) else part

    def _input(self, clips: Tensor, labels: Tensor) -> Tensor:
        if torch.is_inference_mode_enabled():
            raise RuntimeError("a TAF step takes gradients, but is called within torch.inference_mode()")
        refuse_wrapped(self.model)  # a model may be sharded after its step was made
        x = to_model_input(self.model, clips)
        self.augment.check(self.model, x, labels)
        return x

    def _clean_pass(self, x: Tensor) -> tuple[ForwardOutput, CleanForward]:
        # Recording surrounds what is compiled: within it, a model that breaks the graph would lose it.
        with clean_path(self.model), self.augment.recording(self.model) as recording, single_values_named():
            outputs = self._clean(x)
        return outputs, CleanForward(recording, outputs.stages, self._graphs)

    def _adversarial_pass(
        self,
        x: Tensor,
        labels: Tensor,
        logits: Tensor,
        selection: "_Selection",
        clean: CleanForward,
        before: StateBefore,
        generator: torch.Generator | None,
    ) -> "_AdversarialPass":
        targets = self.augment.attack_labels(logits, labels, generator)
        weight = _weight_among_ranks(selection.count)
        index, out_of_range = selection.read()
        if out_of_range:
            require_classes("labels", labels, logits.shape[1])
        attacked, none = torch.tensor(len(index)), torch.tensor(0)
        if len(index) == 0:
            return _AdversarialPass(self._nothing_attacked(logits.new_zeros(())), attacked, none, none)
        rows = ALL_ROWS if len(index) == len(x) else Rows(index)
        with before.again():
            x_adv, without_gradient = self.augment.attack(self.model, x, targets, clean, rows, generator)
        with adversarial_path(self.model), count_by_running_statistics(self.model) as replaced:
            outputs = self._adversarial(x_adv)
        loss = _loss(self._view, outputs, labels[index])
        loss = (weight * loss).to(loss.dtype)
        return _AdversarialPass(loss, attacked, without_gradient.sum(), torch.tensor(sum(replaced)))

    def _to_attack(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Whether to attack each clip, bool [B]."""
        if callable(self.composition):
            chosen = self.composition(logits, labels)
            if not isinstance(chosen, Tensor) or chosen.dtype != torch.bool or chosen.shape != labels.shape:
                got = f"{chosen.dtype} {list(chosen.shape)}" if isinstance(chosen, Tensor) else repr(chosen)
                raise ValueError(f"composition must return a bool for each of {len(labels)} clips, got {got}")
            return chosen
        correct = logits.argmax(1) == labels
        return {"wrong": ~correct, "correct": correct, "all": torch.ones_like(correct)}[self.composition]

    def _nothing_attacked(self, zero: Tensor) -> Tensor:
        """0, with a gradient of 0 for every adversarial parameter: DistributedDataParallel would wait for a
        parameter without one."""
        return _ZeroGradients.apply(zero, *adversarial_parameters(self.model))

    def _report(self, clean: "_CleanPass", adversarial: "_AdversarialPass", logits: Tensor) -> TAFStepOutput:
        return {
            "loss": clean.part + (1 - self.alpha) * adversarial.loss,
            "clean_loss": clean.loss,
            "adv_loss": adversarial.loss.detach(),
            "logits": logits,
            "attacked": adversarial.attacked,
            "failed": adversarial.failed,
            "by_running_statistics": adversarial.by_running_statistics,
        }


class _ZeroGradients(torch.autograd.Function):
    """A scalar whose gradients with respect to parameters are 0: views of one tensor, so that they take one
    launch."""

    @staticmethod
    def forward(ctx, scalar, *parameters):
        ctx.parameters = [(p.shape, p.dtype, p.device) for p in parameters]
        return scalar.clone()

    @staticmethod
    def backward(ctx, _):
        sizes: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        for shape, *kind in ctx.parameters:
            sizes.setdefault(tuple(kind), []).append(shape.numel())
        zeros = {
            (dtype, device): iter(torch.zeros(sum(each), dtype=dtype, device=device).split(each))
            for (dtype, device), each in sizes.items()
        }
        return None, *(next(zeros[tuple(kind)]).view(shape) for shape, *kind in ctx.parameters)


class _CleanPass(NamedTuple):
    """The clean loss, without gradient, and the part of the step's loss that it is."""

    part: Tensor
    loss: Tensor


class _AdversarialPass(NamedTuple):
    """The adversarial loss, weighted among ranks, and the counts of :class:`TAFStepOutput`."""

    loss: Tensor
    attacked: Tensor
    failed: Tensor
    by_running_statistics: Tensor


def _run(backward: Callable[[Tensor], Any]) -> Callable[[Tensor, Tensor], Tensor]:
    def run(part: Tensor, x: Tensor) -> Tensor:
        backward(part)
        return part.detach()

    return run


def _require_gradients(model: nn.Module) -> list[nn.Parameter]:
    """Raise RuntimeError unless there can be gradients. -> the parameters of the model."""
    if not torch.is_grad_enabled():
        mode = "inference_mode" if torch.is_inference_mode_enabled() else "no_grad"
        raise RuntimeError(f"a TAF step takes gradients, but is called within torch.{mode}()")
    parameters = parameters_of(model)
    if not any(parameter.requires_grad for parameter in parameters):
        raise RuntimeError("a TAF step takes gradients, but no parameter of the model requires one")
    return parameters


@functools.cache
def _keep_out_of_graphs() -> None:
    """An outer torch.compile runs a step as it is, with the engines that the step compiles itself: the attack
    depends on what it records of the clean forward. Not a decorator, for it imports torch._dynamo."""
    for name in ("forward", "accumulate_grads"):
        setattr(TAFStep, name, torch.compiler.disable(getattr(TAFStep, name)))


class _Engine:
    """The training forward, compiled if wanted; with ``any_batch`` one graph serves any number of clips.

    A copy, also a pickled one, compiles the copy's model.
    """

    def __init__(self, view: ModelView, compile: bool, any_batch: bool = False):
        self._arguments = view, compile, any_batch
        self._compiled, self._any_batch = compile, compile and any_batch
        self._forward = torch.compile(view.forward) if compile else view.forward

    def __reduce__(self) -> tuple:
        return _Engine, self._arguments

    def __call__(self, x: Tensor) -> ForwardOutput:
        if self._compiled:
            # Frames of another size are compiled anew: Inductor fails on channels-last ones of any size.
            torch._dynamo.mark_static(x, [1, 2, 3, 4])
        if self._any_batch:
            torch._dynamo.maybe_mark_dynamic(x, 0)
        if torch.compiler.is_compiling():  # an outer compilation of the plain step
            return self._forward(x)
        with counted_at_once(self._arguments[0].model):
            return self._forward(x)


class _Selection:
    """The clips where ``selected``, bool [B], is true. Their ``count`` starts its way from the device to the
    host at once, together with the number of labels ``out_of_range``, bool [B]; only :meth:`read` waits."""

    def __init__(self, selected: Tensor, out_of_range: Tensor):
        self.count = selected.sum()
        self._selected_first = selected.int().argsort(descending=True, stable=True)
        self._base = len(selected) + 1  # of both numbers as one, which takes one copy
        self._on_host = HostCopy(torch.add(self.count, out_of_range.sum(), alpha=self._base))

    def read(self) -> tuple[Tensor, int]:
        """The clips, int64 [count], ascending; and the number of labels that are out of range."""
        out_of_range, count = divmod(int(self._on_host.read()), self._base)
        return self._selected_first[:count], out_of_range


def _weight_among_ranks(count: Tensor) -> float | Tensor:
    """The weight with which the mean over ranks of (weight * mean over a rank's ``count`` clips) is the mean
    over the clips of all ranks; 1 outside a process group."""
    if _world_size() == 1:
        return 1.0
    total = count.double()
    dist.all_reduce(total)
    return count * _world_size() / total


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _loss(view: ModelView, outputs: ForwardOutput, labels: Tensor) -> Tensor:
    loss = F.cross_entropy(outputs.logits, labels)
    if outputs.auxiliary is not None:
        loss = loss + view.auxiliary_weight * F.cross_entropy(outputs.auxiliary, labels)
    return loss
