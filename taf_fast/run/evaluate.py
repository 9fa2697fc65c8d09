"""Predictions of the clean path, and what they come to: top-1, top-5 and loss."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from taf_fast.clips import to_model_input
from taf_fast.data import ClipLoader, DataError
from taf_fast.files import read_csv, write_csv
from taf_fast.run import ranks


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One video: its class and the predicted one, the place of its class among the logits (0: the largest)
    and its cross-entropy."""

    id: str
    label: int
    predicted: int
    place: int
    loss: float


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Fractions in [0,1]; ``loss`` is the mean cross-entropy over ``clips`` videos."""

    top1: float
    top5: float
    loss: float
    clips: int


@torch.no_grad()
def predict(model: nn.Module, loader: ClipLoader, device: torch.device) -> list[Prediction]:
    """All clips of ``loader`` that decode, each by the mean of the logits of its views.

    Ranks, each with its share of the clips, get the predictions of all. The model is in its former mode
    afterwards.
    """
    was_training = model.training
    model.eval()
    found = {}
    with ranks.together():
        for batch in loader:
            labels = batch.labels.to(device)
            logits = model(to_model_input(model, batch.clips.to(device)))
            logits = logits.unflatten(0, (len(labels), -1)).mean(1)
            order = logits.argsort(1, descending=True)
            places = (order == labels[:, None]).int().argmax(1)
            losses = F.cross_entropy(logits, labels, reduction="none")
            columns = (labels, order[:, 0], places, losses)
            rows = zip(batch.ids, *(column.tolist() for column in columns), strict=True)
            found |= {row[0]: Prediction(*row) for row in rows}
    model.train(was_training)
    return list(ranks.union(found).values())


def score(predictions: list[Prediction]) -> Evaluation:
    clips = len(predictions)

    def mean(values: Iterable[float]) -> float:
        return sum(values) / clips

    return Evaluation(
        top1=mean(p.place < 1 for p in predictions),
        top5=mean(p.place < 5 for p in predictions),
        loss=mean(p.loss for p in predictions),
        clips=clips,
    )


def write_predictions(path: Path, predictions: list[Prediction]) -> None:
    """A CSV with a line for every video, in the order of their ids."""
    write_csv(path, [dataclasses.asdict(p) for p in sorted(predictions, key=lambda p: p.id)])


def read_predictions(path: Path) -> list[Prediction]:
    """Raises DataError for a file that is no CSV of :func:`write_predictions`."""
    kinds = {field.name: field.type for field in dataclasses.fields(Prediction)}
    try:
        rows = read_csv(path)
        return [Prediction(**{name: kinds[name](value) for name, value in row.items()}) for row in rows]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path} is no file of predictions: {error}") from None
