"""One training step: plain fine-tuning, and TAF's (Eq. 7)."""

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from taf_fast.adapt import has_stages, stages
from taf_fast.augment import Augment, CleanForward, Mixing
from taf_fast.clips import to_model_input
from taf_fast.dual_batch_norm import adversarial_parameters, adversarial_path, require_dual

COMPOSITIONS = ("wrong", "all", "correct")


class PlainStep(nn.Module):
    """Fine-tuning without adversarial clips: what TAF's cost and gain are measured against.

    Args:
        model: clips [B,T,3,H,W] -> logits [B,classes].
        compile: compile the forward, and with it the backward.
        mix: trains on mixed clips instead of clean ones, with their labels' losses weighted as it says.
    """

    def __init__(self, model: nn.Module, compile: bool = True, mix: Mixing | None = None):
        super().__init__()
        self.model, self.mix = model, mix
        self._forward = _engine(compile)

    def forward(
        self, clips: Tensor, labels: Tensor, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """As :meth:`TAFStep.forward`, with ``loss``, ``logits`` and, of clean clips, ``clean_loss`` alone.
        ``generator`` is for mixing."""
        x = to_model_input(self.model, clips)
        if self.mix is None:
            outputs, _ = self._forward(self.model, x)
            loss = _loss(self.model, outputs, labels)
            return {"loss": loss, "clean_loss": loss.detach(), "logits": outputs[0].detach()}
        x, own, partner = self.mix(x, generator)
        outputs, _ = self._forward(self.model, x)
        losses = [_loss(self.model, outputs, y) for y in (labels, labels[partner])]
        return {
            "loss": torch.lerp(losses[1], losses[0], own.to(losses[0].dtype)),
            "logits": outputs[0].detach(),
        }

    def accumulate_grads(
        self, clips: Tensor, labels: Tensor, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """As :meth:`TAFStep.accumulate_grads`."""
        out = self(clips, labels, generator)
        out["loss"].backward()
        return {name: value.detach() for name, value in out.items()}


class TAFStep(nn.Module):
    """Temporal adversarial fine-tuning, Eq. 7: alpha CE(clean, y) + (1 - alpha) CE(augmented, y).

    One clean forward gives the clean loss, the attack labels, the choice of clips and the batch
    statistics of the attack. Only the chosen clips are attacked and go through the adversarial
    batch norms. Both losses are means over their own clips; when no clip is chosen the loss is
    alpha times the clean loss, and the gradients of the adversarial batch norms are 0. A model with an
    auxiliary head (TPN) adds that head's weighted cross-entropy to both; the attack does not see it.

    Where torch.distributed is initialised, every rank of its default group has to call the step as often
    as the others. The adversarial loss is then scaled such that its mean over ranks, and that of its
    gradients, is the mean over the chosen clips of all.

    Args:
        model: has its adversarial batch norms (:func:`taf_fast.add_adversarial_bn`), and
            ``features`` and ``head`` or :func:`taf_fast.adapt` around it.
        augment: the attack: :class:`taf_fast.TemporalAugment`, or one it is compared with.
        alpha: weight of the clean loss, in [0,1].
        composition: which clips are attacked: those classified ``"wrong"`` (the paper's best on
            Something-Something), ``"all"`` (Diving48) or those classified ``"correct"``.
        compile: compile the clean and the adversarial forward, and with them their backwards.

    Raises:
        ValueError: alpha or composition out of range, a batch norm without its twin, or one that is
            synchronised over ranks (a rank without chosen clips would leave the others waiting).
    """

    def __init__(
        self,
        model: nn.Module,
        augment: Augment,
        alpha: float = 0.7,
        composition: str = "wrong",
        compile: bool = True,
    ):
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be between 0 and 1, got {alpha}")
        if composition not in COMPOSITIONS:
            raise ValueError(f"composition must be one of {', '.join(COMPOSITIONS)}, got {composition!r}")
        require_dual(model)
        if _ranks() > 1 and any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
            raise ValueError("the model has SyncBatchNorm, expected batch norms of each rank's own clips")
        self.model, self.augment, self.alpha, self.composition = model, augment, alpha, composition
        self._clean = _engine(compile)
        # The number of attacked clips changes from step to step: one graph is to serve them all.
        self._adversarial = _engine(compile, any_batch=True)

    def forward(
        self, clips: Tensor, labels: Tensor, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Both losses of a batch, for one ``backward()``; drops into any trainer, and into
        DistributedDataParallel (with ``broadcast_buffers=False``: a rank keeps its running statistics).

        Args:
            clips: [B,T,3,H,W] as the model takes them, or uint8 [B,T,H,W,3].
            labels: int64 [B].
            generator: draws the random attack labels.

        Returns:
            ``loss`` (with gradient), ``clean_loss`` and ``adv_loss`` (detached scalars; the latter
            0 when no clip is attacked), ``logits`` [B,classes] of the clean pass (detached),
            ``attacked``, the number of attacked clips, and ``failed``, how many of these had a NaN or
            infinite attack loss, so that they stayed as they were (int64 scalars).

        Raises:
            ValueError: shapes that do not fit, N > T, or NaN or infinity in the clips.
        """
        x = self._input(clips, labels)
        outputs, clean = self._clean_pass(x)
        clean_loss, logits = _loss(self.model, outputs, labels), outputs[0]
        logits = logits.detach()
        chosen = _Chosen(self._chosen(logits, labels))
        adv_loss, counts = self._adversarial_loss(x, labels, logits, chosen, clean, generator)
        loss = self.alpha * clean_loss + (1 - self.alpha) * adv_loss
        return self._report(loss, clean_loss, adv_loss, logits, counts)

    def accumulate_grads(
        self, clips: Tensor, labels: Tensor, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """The lean form: runs the backwards itself, adding to the parameters' ``grad``.

        The clean backward comes before the attack, so that one graph is alive at a time. Same
        arguments, result (``loss`` detached too) and gradients as ``forward`` with ``backward()``. They are
        this rank's: with several, average them before the optimiser's step.
        """
        x = self._input(clips, labels)
        outputs, clean = self._clean_pass(x)
        clean_loss, logits = _loss(self.model, outputs, labels), outputs[0].detach()
        del outputs
        # Which clips these are is known before the backward: a GPU is busy with that while the host reads how
        # many they are and prepares the attack.
        chosen = _Chosen(self._chosen(logits, labels))
        (self.alpha * clean_loss).backward()
        clean_loss = clean_loss.detach()
        adv_loss, counts = self._adversarial_loss(x, labels, logits, chosen, clean, generator)
        if adv_loss.requires_grad:
            ((1 - self.alpha) * adv_loss).backward()
        adv_loss = adv_loss.detach()
        loss = self.alpha * clean_loss + (1 - self.alpha) * adv_loss
        return self._report(loss, clean_loss, adv_loss, logits, counts)

    def _input(self, clips: Tensor, labels: Tensor) -> Tensor:
        x = to_model_input(self.model, clips)
        self.augment.check(x, labels)
        return x

    def _clean_pass(self, x: Tensor) -> tuple[tuple[Tensor, ...], CleanForward]:
        # Recording surrounds what is compiled: within it, a model that breaks the graph would lose it.
        with self.augment.recording(self.model) as recording:
            outputs, parts = self._clean(self.model, x)
        return outputs, CleanForward(recording, parts)

    def _adversarial_loss(
        self,
        x: Tensor,
        labels: Tensor,
        logits: Tensor,
        chosen: "_Chosen",
        clean: CleanForward,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        targets = self.augment.attack_labels(logits, labels, generator)
        weight = _weight_among_ranks(chosen.count)
        rows = chosen.rows()
        attacked = len(rows)
        counts = {"attacked": torch.tensor(attacked), "failed": torch.tensor(0)}
        if attacked == 0:
            return self._nothing_attacked(logits.new_zeros(())), counts
        x_adv, failed = self.augment.attack(
            self.model, x, targets, clean, None if attacked == len(x) else rows, generator
        )
        with adversarial_path(self.model):
            outputs, _ = self._adversarial(self.model, x_adv)
        loss = _loss(self.model, outputs, labels[rows])
        return (weight * loss).to(loss.dtype), counts | {"failed": failed.sum()}

    def _chosen(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Whether to attack each clip, bool [B]."""
        correct = logits.argmax(1) == labels
        chosen = {"wrong": ~correct, "correct": correct, "all": torch.ones_like(correct)}
        return chosen[self.composition]

    def _nothing_attacked(self, zero: Tensor) -> Tensor:
        """0, with a gradient of 0 for every adversarial parameter: for one without, DistributedDataParallel
        would wait."""
        return sum((0 * parameter.sum() for parameter in adversarial_parameters(self.model)), zero)

    @staticmethod
    def _report(loss, clean_loss, adv_loss, logits, counts) -> dict[str, Tensor]:
        return {
            "loss": loss,
            "clean_loss": clean_loss.detach(),
            "adv_loss": adv_loss.detach(),
            "logits": logits.detach(),
            **counts,
        }


def _engine(compile: bool, any_batch: bool = False) -> Callable:
    """:func:`_training_forward`, compiled if wanted; with ``any_batch`` for any number of clips at once."""
    if not compile:
        return _training_forward
    compiled = torch.compile(_training_forward)

    def forward(model: nn.Module, x: Tensor):
        # Frames of another size are compiled anew: Inductor fails on channels-last ones of any size.
        torch._dynamo.mark_static(x, [1, 2, 3, 4])
        if any_batch:
            torch._dynamo.maybe_mark_dynamic(x, 0)
        return compiled(model, x)

    return forward


def _training_forward(model: nn.Module, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The logits and, of a model with such a head, the auxiliary logits; and what the heads took
    (detached; nothing for a model that does not come in two parts)."""
    if not has_stages(model):
        return (model(x),), ()
    parts = stages(model, x)
    outputs = (model.head(*parts),)
    if hasattr(model, "auxiliary_head"):
        # Last, so that the batch norms of this forward begin as those of the attack's do.
        outputs += (model.auxiliary_head(*parts),)
    return outputs, tuple(part.detach() for part in parts)


class _Chosen:
    """The clips where a bool [B] is true. Their ``count`` is on its way from the device to the host from the
    beginning; only :meth:`rows` waits for it."""

    def __init__(self, chosen: Tensor):
        self.count = chosen.sum()
        self._chosen_first = chosen.int().argsort(descending=True, stable=True)
        self._on_host = self.count.to("cpu", non_blocking=True)
        self._copied = torch.cuda.current_stream(chosen.device).record_event() if chosen.is_cuda else None

    def rows(self) -> Tensor:
        """int64 [count], ascending."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._chosen_first[: int(self._on_host)]


def _weight_among_ranks(count: Tensor) -> float | Tensor:
    """What makes the mean over ranks of (weight * mean over a rank's ``count`` clips) the mean over the
    clips of all ranks; 1 outside a process group."""
    if _ranks() == 1:
        return 1.0
    total = count.double()
    dist.all_reduce(total)
    return count * _ranks() / total


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _loss(model: nn.Module, outputs: tuple[Tensor, ...], labels: Tensor) -> Tensor:
    loss = F.cross_entropy(outputs[0], labels)
    for auxiliary in outputs[1:]:
        loss = loss + model.auxiliary_weight * F.cross_entropy(auxiliary, labels)
    return loss
