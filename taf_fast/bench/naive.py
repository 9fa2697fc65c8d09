"""TAF as one writes it from the paper's equations in eager PyTorch, to compare with."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taf_fast.adapt import stages
from taf_fast.dual_batch_norm import adversarial_path


class NaiveStep(nn.Module):
    """A forward of its own for the attack, double backward through the whole model, weight gradients
    that the attack computes and throws away, and one backward over both graphs: 6 + 3p forwards.

    Args:
        model: one of :mod:`taf_fast.models` with adversarial batch norms.
        attacked: number of clips to attack, the first of the batch.
        steps: K.
        compile: compile the trunk; a double backward through a compiled head is not possible.
    """

    def __init__(self, model: nn.Module, attacked: int, steps: int = 1, compile: bool = False):
        super().__init__()
        self.model, self.attacked, self.steps = model, attacked, steps
        self.stages = torch.compile(stages) if compile else stages

    def accumulate_grads(self, clips: Tensor, labels: Tensor) -> dict[str, Tensor]:
        model, rows = self.model, slice(self.attacked)
        parts = self.stages(model, clips)
        logits = model.head(*parts)
        loss = 0.7 * self._loss(logits, parts, labels)
        if self.attacked:
            other = (labels + torch.randint_like(labels, 1, logits.shape[1])) % logits.shape[1]
            targets = torch.where(logits.argmax(1) == labels, other, labels)
            attacked = self._attack(clips, targets)[rows]
            with adversarial_path(model):
                parts = self.stages(model, attacked)
                loss = loss + 0.3 * self._loss(model.head(*parts), parts, labels[rows])
        model.zero_grad()
        loss.backward()
        return {"loss": loss.detach()}

    def _loss(self, logits: Tensor, parts: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        loss = F.cross_entropy(logits, labels)
        if hasattr(self.model, "auxiliary_head"):
            auxiliary = self.model.auxiliary_head(*parts)
            loss = loss + self.model.auxiliary_weight * F.cross_entropy(auxiliary, labels)
        return loss

    def _attack(self, clips: Tensor, targets: Tensor) -> Tensor:
        std = self.model.std.view(3, 1, 1)
        epsilon, step = 64 / 255 / std, 32 / 255 / std
        lower, upper = ((v - self.model.mean.view(3, 1, 1)) / std for v in (0, 1))
        x = clips
        for _ in range(self.steps):
            x = x.detach().requires_grad_()
            parts = self.stages(self.model, x)
            loss = F.cross_entropy(self.model.head(*parts), targets, reduction="sum")
            (grad,) = torch.autograd.grad(loss, parts[0], create_graph=True)
            cam = (grad.mean((3, 4), keepdim=True) * parts[0]).sum(2)
            cam = (cam - cam.amin((1, 2, 3), keepdim=True)) / cam.amax((1, 2, 3), keepdim=True)
            cam.sum((2, 3)).mean(1).sum().backward()
            x = x + step * x.grad.sign()
            x = torch.minimum(torch.maximum(x, clips - epsilon), clips + epsilon)
            x = torch.minimum(torch.maximum(x, lower), upper)
        return x.detach()
