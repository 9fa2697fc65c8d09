"""A literal implementation of the paper's equations in eager PyTorch, as the baseline of the benchmarks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taf_fast.models.contract import StagedView, normalisation_of, view_of
from taf_fast.models.dual_batch_norm import adversarial_path


class NaiveStep(nn.Module):
    """TAF without the savings of :class:`taf_fast.TAFStep`, at the cost of 6 + 3p + 3(K-1) forwards.

    The attack has its own forward and a double backward through the whole model; it computes gradients of the
    weights and discards them. One backward covers both graphs.

    Args:
        model: a model of :mod:`taf_fast.models` with adversarial batch norms.
        attacked: number of clips to attack: the first ones of the batch.
        steps: K, the number of attack steps.
        compile: compile the trunk. A double backward through a compiled head is not possible.
    """

    def __init__(self, model: nn.Module, attacked: int, steps: int = 1, compile: bool = False):
        super().__init__()
        view = view_of(model)
        assert isinstance(view, StagedView)
        normalisation = normalisation_of(model)
        assert normalisation is not None
        self.model = model
        self.normalisation = normalisation
        self.attacked = attacked
        self.steps = steps
        self.view = view
        self.stages = torch.compile(view.stages) if compile else view.stages

    def accumulate_grads(self, clips: Tensor, labels: Tensor) -> dict[str, Tensor]:
        model, rows = self.model, slice(self.attacked)
        parts = self.stages(clips)
        logits = self.view.head(*parts)
        loss = 0.7 * self._loss(logits, parts, labels)
        if self.attacked:
            other = (labels + torch.randint_like(labels, 1, logits.shape[1])) % logits.shape[1]
            targets = torch.where(logits.argmax(1) == labels, other, labels)
            attacked = self._attack(clips, targets)[rows]
            with adversarial_path(model):
                parts = self.stages(attacked)
                loss = loss + 0.3 * self._loss(self.view.head(*parts), parts, labels[rows])
        model.zero_grad()
        loss.backward()
        return {"loss": loss.detach()}

    def _loss(self, logits: Tensor, parts: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        loss = F.cross_entropy(logits, labels)
        if self.view.auxiliary_head is not None:
            auxiliary = self.view.auxiliary_head(*parts)
            loss = loss + self.view.auxiliary_weight * F.cross_entropy(auxiliary, labels)
        return loss

    def _attack(self, clips: Tensor, targets: Tensor) -> Tensor:
        mean, std = (values.view(3, 1, 1) for values in self.normalisation)
        epsilon, step = 64 / 255 / std, 32 / 255 / std
        lower, upper = ((v - mean) / std for v in (0, 1))
        x = clips
        for _ in range(self.steps):
            x = x.detach().requires_grad_()
            parts = self.stages(x)
            loss = F.cross_entropy(self.view.head(*parts), targets, reduction="sum")
            (grad,) = torch.autograd.grad(loss, parts[0], create_graph=True)
            cam = (grad.mean((3, 4), keepdim=True) * parts[0]).sum(2)
            cam = (cam - cam.amin((1, 2, 3), keepdim=True)) / cam.amax((1, 2, 3), keepdim=True)
            cam.sum((2, 3)).mean(1).sum().backward()
            assert x.grad is not None
            x = x + step * x.grad.sign()
            x = torch.minimum(torch.maximum(x, clips - epsilon), clips + epsilon)
            x = torch.minimum(torch.maximum(x, lower), upper)
        return x.detach()
