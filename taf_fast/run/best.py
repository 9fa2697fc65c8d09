"""The best epoch of a run so far."""

import dataclasses

from taf_fast.measure.evaluate import Evaluation


@dataclasses.dataclass(frozen=True)
class Best:
    """The first epoch, counted from 0, of those with the best score on the validation videos.

    ``measure`` is "top1", "top5" or "loss", of which a smaller one is better; ``evaluation`` has all three.
    """

    measure: str
    epoch: int
    evaluation: Evaluation

    def or_better(self, epoch: int, evaluation: Evaluation) -> "Best":
        """The better of this one and a later epoch."""
        old, new = (getattr(scores, self.measure) for scores in (self.evaluation, evaluation))
        better = new < old if self.measure == "loss" else new > old
        return Best(self.measure, epoch, evaluation) if better else self
