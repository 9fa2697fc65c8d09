"""One step of the optimiser: a batch moves the weights."""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from taf_fast.augment.batch_statistics import SingleValueError
from taf_fast.data import Batch
from taf_fast.errors import RunError
from taf_fast.precision import autocast
from taf_fast.process import ranks
from taf_fast.run.config import FinetuneConfig
from taf_fast.run.reduction import ReducedStep
from taf_fast.run.unsettled import MEANS, Scalars, Taken
from taf_fast.step import PlainStep, StepOutput, TAFStep


class OptimizerStep:
    """Trains a model on a batch, whose parts each make a gradient by ``step``.

    Args:
        config: says which step, in which precision and parts, and the limit of the gradient.
        model: on the device of the run, as are ``optimizer``, ``average`` and ``generator``.
        average: moves with the model, if there is one.
        generator: of the attacks.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: AveragedModel | None,
        generator: torch.Generator,
    ) -> None:
        self._config, self._model, self._optimizer = config, model, optimizer
        self._average, self._generator = average, generator
        self._device = generator.device
        self._copying = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self.step = _step(config, model)
        alone = ranks.count() == 1
        self._reduced = None if alone else ReducedStep(self.step, running_statistics(model), config.exchange)

    def take(self, batch: Batch, number: int) -> Taken:
        """Train on a batch, for step ``number`` of the run. The host does not wait for the results: a GPU
        still computes.

        Raises:
            RunError: the batch has a single clip, of which a batch norm gets a single value per channel.
        """
        clips, labels = self._on_device(batch)
        if len(labels) < (parts := self._config.accumulate):
            # Ranks meet in every part, so none may be empty.
            again = torch.arange(parts, device=self._device) % len(labels)
            clips, labels = clips[again], labels[again]
        (self._reduced or self._optimizer).zero_grad()
        try:
            with autocast(self._device, self._config.precision):
                scalars = self._accumulate_grads(clips, labels)
        except SingleValueError:
            raise RunError(
                f"step {number} has a single good clip, of which a batch norm of {self._config.model} gets a "
                "single value per channel, expected more: replace the bad clips, or choose a larger size "
                f"than {self._config.size}"
            ) from None
        limit = self._config.clip_grad
        if limit:
            norm = nn.utils.clip_grad_norm_(self._model.parameters(), limit)
        else:
            gradients = [parameter.grad for parameter in self._model.parameters()]
            norm = nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
        self._optimizer.step()
        if self._average is not None:
            self._average.update_parameters(self._model)
        return Taken(number, Scalars(scalars | {"grad_norm": norm}, self._device), len(labels))

    def _on_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The clips and labels of a batch, on a GPU copied from pinned memory while it computes the step
        before, which the host does not wait for."""
        if self._copying is None:
            return batch.clips.to(self._device), batch.labels.to(self._device)
        with torch.cuda.stream(self._copying):
            clips = batch.clips.to(self._device, non_blocking=True)
            labels = batch.labels.to(self._device, non_blocking=True)
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._copying)
        for tensor in (clips, labels):
            tensor.record_stream(computing)  # or its memory would be given away too early
        return clips, labels

    def _accumulate_grads(self, clips: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The gradient of a batch over all ranks, part by part, each of which weighs as many clips as it has.
        -> the scalars of the batch on this rank."""
        parts, found = self._config.accumulate, dict[str, Tensor]()
        xs, ys = clips.tensor_split(parts), labels.tensor_split(parts)
        for number, (x, y) in enumerate(zip(xs, ys, strict=True), 1):
            share = len(y) / len(labels)
            backward = functools.partial(_backward_of, share)
            out: StepOutput
            if self._reduced is None:
                out = self.step.accumulate_grads(x, y, self._generator, backward)
            else:
                last = number == parts
                out = self._reduced.accumulate_grads(x, y, self._generator, backward, last=last)
            scalars: dict[str, Any] = {**out}
            scalars["correct"] = (scalars.pop("logits").argmax(1) == y).sum()
            for name, value in scalars.items():
                value = value * share if name in MEANS and parts > 1 else value
                found[name] = found[name] + value if name in found else value
        return found


def _step(config: FinetuneConfig, model: nn.Module) -> PlainStep | TAFStep:
    attack = config.attack()
    if attack is None:
        return PlainStep(model, config.compile, config.mixing())
    return TAFStep(model, attack, config.alpha, config.composition, config.compile)


def running_statistics(model: nn.Module) -> list[Tensor]:
    """The running statistics of all batch norms."""
    ends = ("running_mean", "running_var")
    return [buffer for name, buffer in model.named_buffers() if name.endswith(ends)]


def _backward_of(share: float, loss: Tensor) -> None:
    (loss if share == 1 else share * loss).backward()
