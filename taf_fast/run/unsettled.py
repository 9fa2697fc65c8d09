"""Steps whose results the host reads later, so that it does not wait for a GPU that still computes them."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from taf_fast.process import ranks
from taf_fast.process.host_copy import HostCopy

#: Means over the clips of each rank, which are averaged over ranks; everything else is summed.
MEANS = frozenset({"loss", "clean_loss", "adv_loss", "grad_norm"})


class Scalars:
    """Scalars of a step by ``names``, those on ``device`` on their way to the host in one copy."""

    def __init__(self, scalars: dict[str, Tensor], device: torch.device):
        self._scalars = scalars
        self.names = list(scalars)
        self._moved = [name for name, value in scalars.items() if value.device.type == device.type]
        self._copy = HostCopy(torch.stack([scalars[name] for name in self._moved]))

    def read(self) -> list[float]:
        moved = dict(zip(self._moved, self._copy.read().tolist(), strict=True))
        return [moved[name] if name in moved else float(self._scalars[name]) for name in self.names]


class Taken(NamedTuple):
    """A step that was taken: its number, and its scalars and number of clips on this rank."""

    number: int
    scalars: Scalars
    clips: int


class Measured(NamedTuple):
    """A step with its ``values`` and ``clips`` over all ranks, and what was said of it when it was added."""

    number: int
    values: dict[str, float]
    clips: int
    about: dict[str, float]

    def failure(self) -> str | None:
        """What is not finite of the loss and the gradient, in words; None if both are."""
        loss, norm = self.values["loss"], self.values["grad_norm"]
        if math.isfinite(loss) and math.isfinite(norm):
            return None
        return f"step {self.number}: loss {loss}, gradient norm {norm}, expected finite values"


class Unsettled:
    """The steps that were taken and whose results have not been read yet, which ``report`` gets in order."""

    def __init__(self, report: Callable[[Measured], None]) -> None:
        self._report = report
        self._steps: list[tuple[Taken, dict[str, float]]] = []

    def add(self, step: Taken, **about: float) -> None:
        """Add a step, with what else ``report`` is to get, such as its ``step_seconds``."""
        self._steps.append((step, about))

    def count_seconds(self, seconds: float) -> None:
        """Count them to the ``step_seconds`` of the last step, if it is not settled yet."""
        if self._steps:
            self._steps[-1][1]["step_seconds"] += seconds

    def settle(self, flags: Sequence[bool] = (), leave: int = 0) -> list[bool]:
        """Report the steps without the last ``leave``; all ranks do so in one exchange.
        -> whether any rank raises each of the ``flags``.

        A step with a loss that is not finite has moved the weights by now, and the steps after it have too:
        nothing may be saved before all steps are settled.
        """
        due, self._steps = self._steps[: -leave or None], self._steps[-leave:] if leave else []
        values = [float(flag) for flag in flags]
        for step, _ in due:
            values += [*step.scalars.read(), step.clips]
        totals = iter(ranks.total(values) if values else ())
        raised = [next(totals) > 0 for _ in flags]
        for step, about in due:
            found = {name: next(totals) for name in step.scalars.names}
            means = {name: value / ranks.count() if name in MEANS else value for name, value in found.items()}
            self._report(Measured(step.number, means, int(next(totals)), about))
        return raised
