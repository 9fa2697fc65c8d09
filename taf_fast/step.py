"""One training step: plain fine-tuning, and TAF's (Eq. 7)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taf_fast.adapt import has_stages, stages
from taf_fast.augment import CleanForward, TemporalAugment
from taf_fast.clips import to_model_input
from taf_fast.dual_batch_norm import adversarial_path, require_dual

COMPOSITIONS = ("wrong", "all", "correct")


class PlainStep(nn.Module):
    """Fine-tuning on clean clips alone: what TAF's cost and gain are measured against.

    Args:
        model: clips [B,T,3,H,W] -> logits [B,classes].
        compile: compile the forward, and with it the backward.
    """

    def __init__(self, model: nn.Module, compile: bool = True):
        super().__init__()
        self.model = model
        self._forward = torch.compile(_training_forward) if compile else _training_forward

    def forward(self, clips: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """As :meth:`TAFStep.forward`, with ``loss``, ``clean_loss`` and ``logits`` alone."""
        outputs, _ = self._forward(self.model, to_model_input(self.model, clips))
        loss, logits = _loss(self.model, outputs, labels), outputs[0]
        return {"loss": loss, "clean_loss": loss.detach(), "logits": logits.detach()}

    def accumulate_grads(self, clips: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """As :meth:`TAFStep.accumulate_grads`."""
        out = self(clips, labels)
        out["loss"].backward()
        return {name: value.detach() for name, value in out.items()}


class TAFStep(nn.Module):
    """Temporal adversarial fine-tuning, Eq. 7: alpha CE(clean, y) + (1 - alpha) CE(augmented, y).

    One clean forward gives the clean loss, the attack labels, the choice of clips and the batch
    statistics of the attack. Only the chosen clips are attacked and go through the adversarial
    batch norms. Both losses are means over their own clips; when no clip is chosen the loss is
    alpha times the clean loss. A model with an auxiliary head (TPN) adds that head's weighted
    cross-entropy to both; the attack does not see it.

    Args:
        model: has its adversarial batch norms (:func:`taf_fast.add_adversarial_bn`), and
            ``features`` and ``head`` or :func:`taf_fast.adapt` around it.
        augment: the attack.
        alpha: weight of the clean loss, in [0,1].
        composition: which clips are attacked: those classified ``"wrong"`` (the paper's best on
            Something-Something), ``"all"`` (Diving48) or those classified ``"correct"``.
        compile: compile the clean and the adversarial forward, and with them their backwards.

    Raises:
        ValueError: alpha or composition out of range, or a batch norm without its twin.
    """

    def __init__(
        self,
        model: nn.Module,
        augment: TemporalAugment,
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
        self.model, self.augment, self.alpha, self.composition = model, augment, alpha, composition
        self._clean = torch.compile(_training_forward) if compile else _training_forward
        self._adversarial = torch.compile(_training_forward) if compile else _training_forward
        self._compiled = compile

    def forward(
        self, clips: Tensor, labels: Tensor, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Both losses of a batch, for one ``backward()``; drops into any trainer.

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
        adv_loss, counts = self._adversarial_loss(x, labels, logits.detach(), clean, generator)
        loss = self.alpha * clean_loss + (1 - self.alpha) * adv_loss
        return self._report(loss, clean_loss, adv_loss, logits, counts)

    def accumulate_grads(
        self, clips: Tensor, labels: Tensor, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """The lean form: runs the backwards itself, adding to the parameters' ``grad``.

        The clean backward comes before the attack, so that one graph is alive at a time. Same
        arguments, result (``loss`` detached too) and gradients as ``forward`` with ``backward()``.
        """
        x = self._input(clips, labels)
        outputs, clean = self._clean_pass(x)
        clean_loss, logits = _loss(self.model, outputs, labels), outputs[0]
        (self.alpha * clean_loss).backward()
        logits, clean_loss = logits.detach(), clean_loss.detach()
        adv_loss, counts = self._adversarial_loss(x, labels, logits, clean, generator)
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
        clean: CleanForward,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        targets = self.augment.attack_labels(logits, labels, generator)
        rows = self._attacked_rows(logits, labels)
        counts = {"attacked": torch.tensor(len(rows)), "failed": torch.tensor(0)}
        if len(rows) == 0:
            return logits.new_zeros(()), counts
        chosen = None if len(rows) == len(x) else rows
        x_adv, failed = self.augment.attack(self.model, x, targets, clean, chosen)
        if self._compiled:
            # The number of attacked clips changes from step to step: one graph is to serve them all.
            torch._dynamo.maybe_mark_dynamic(x_adv, 0)
        with adversarial_path(self.model):
            outputs, _ = self._adversarial(self.model, x_adv)
        return _loss(self.model, outputs, labels[rows]), counts | {"failed": failed.sum()}

    def _attacked_rows(self, logits: Tensor, labels: Tensor) -> Tensor:
        correct = logits.argmax(1) == labels
        chosen = {"wrong": ~correct, "correct": correct, "all": torch.ones_like(correct)}
        return chosen[self.composition].nonzero().flatten()

    @staticmethod
    def _report(loss, clean_loss, adv_loss, logits, counts) -> dict[str, Tensor]:
        return {
            "loss": loss,
            "clean_loss": clean_loss.detach(),
            "adv_loss": adv_loss.detach(),
            "logits": logits.detach(),
            **counts,
        }


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


def _loss(model: nn.Module, outputs: tuple[Tensor, ...], labels: Tensor) -> Tensor:
    loss = F.cross_entropy(outputs[0], labels)
    for auxiliary in outputs[1:]:
        loss = loss + model.auxiliary_weight * F.cross_entropy(auxiliary, labels)
    return loss
