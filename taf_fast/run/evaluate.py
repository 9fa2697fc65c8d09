"""What a model makes of the validation videos."""

import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from taf_fast.data import ONE_VIEW, EvaluationViews
from taf_fast.measure.by_class import class_scores, confusion_matrix, mean_class_accuracy
from taf_fast.measure.evaluate import Evaluation, Prediction, evaluating, predict, score, write_predictions
from taf_fast.process import ranks
from taf_fast.run.config import FinetuneConfig
from taf_fast.run.trained import Trained, open_trained


@dataclass(frozen=True)
class Evaluated:
    """Scores, the prediction for every video by id, the names of the classes by label, and the reasons of
    videos that were left out by their ids."""

    scores: Evaluation
    predictions: list[Prediction]
    classes: tuple[str, ...]
    left_out: dict[str, str]

    def by_class(self) -> list[dict]:
        """A row for every class, see :func:`taf_fast.measure.by_class.class_scores`."""
        return class_scores(self.predictions, self.classes)

    @property
    def mean_class_accuracy(self) -> float:
        """The mean top-1 of the classes that have videos, in [0,1]."""
        return mean_class_accuracy(self.by_class())

    def confusion_matrix(self) -> np.ndarray:
        """Number of videos, int64 [classes,classes]: true classes in rows, predicted ones in columns."""
        return confusion_matrix(self.predictions, len(self.classes))

    def write_predictions(self, path: str | os.PathLike) -> None:
        """Write a CSV with a row for every video, see :func:`taf_fast.measure.evaluate.write_predictions`."""
        write_predictions(Path(path), self.predictions, self.classes)


def evaluate(
    model: nn.Module | str | os.PathLike,
    data: str | os.PathLike,
    *,
    num_segments: int | None = None,
    size: int | None = None,
    class_order: str | None = None,
    manifest: str | os.PathLike | None = None,
    views: EvaluationViews = ONE_VIEW,
    batch_size: int = 32,
    workers: int | None = None,
    threads: int | None = None,
    quarantine_limit: float = FinetuneConfig.quarantine_limit,
    device: str | torch.device | None = None,
    trust_checkpoint: bool = False,
    split: str = "validation",
) -> Evaluated:
    """Predict the videos of a split of a data set, from the mean logits of all views of each.

    Args:
        model: a checkpoint of any origin that finetune reads, or a model that takes clips [B,T,3,H,W] to
            logits [B,classes], its classes in the order of the data set's; it returns to its former mode.
        data: the folder of a data set, as for finetune.
        device: where the model moves and stays; None for where it is, and for the CPU with a checkpoint.

    The others are as of :func:`taf_fast.run.trained.open_trained`.

    Raises:
        RunError, DataError, CheckpointError: a value is out of range, or a file or the model does not fit.
    """
    if device is None:
        parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
        device = next((parameter.device for parameter in parameters), torch.device("cpu"))

    with evaluating(model) if isinstance(model, nn.Module) else nullcontext():
        return judge(
            open_trained(
                Path(data),
                model if isinstance(model, nn.Module) else Path(model),
                torch.device(device),
                num_segments=num_segments,
                size=size,
                class_order=class_order,
                manifest=None if manifest is None else Path(manifest),
                views=views,
                batch_size=batch_size,
                workers=workers,
                threads=threads,
                quarantine_limit=quarantine_limit,
                trust_checkpoint=trust_checkpoint,
                split=split,
            )
        )


def judge(trained: Trained) -> Evaluated:
    """Predict all videos; ranks, each with its share of them, all return the whole.

    Raises:
        DataError: too many videos cannot be decoded.
        RunError: the loss of a video is not finite, or the model has another number of classes than the data.
    """
    classes = trained.dataset.classes
    found = predict(trained.model, trained.loader, trained.device, len(classes))
    found = sorted(found, key=lambda prediction: prediction.id)
    return Evaluated(score(found), found, classes, ranks.union(trained.loader.quarantined))
