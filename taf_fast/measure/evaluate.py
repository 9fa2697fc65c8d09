"""Predictions of the clean path, and their scores: top-1, top-5 and loss."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from taf_fast.data import Batch, DataError
from taf_fast.errors import RunError
from taf_fast.files import read_csv, write_csv, write_text
from taf_fast.models.pixels import to_model_input
from taf_fast.plain import printable
from taf_fast.process import ranks


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The prediction for one video.

    ``label`` and ``predicted`` are the true and the predicted class, ``place`` is that of the true class when
    logits are sorted (0: the largest), ``loss`` is the cross-entropy, so that exp(-loss) is the probability
    of the true class, and ``score`` is the probability of the predicted class, in [0,1]; None if the file
    that the prediction was read from has no scores.
    """

    id: str
    label: int
    predicted: int
    place: int
    loss: float
    score: float | None = None


#: The columns of a CSV of predictions, with their meaning.
COLUMNS = {
    "id": "the video's id",
    "label": "number of the true class, from 0",
    "class": "name of the true class",
    "predicted": "number of the predicted class: the one with the largest logit",
    "predicted_class": "name of the predicted class",
    "score": "softmax probability of the predicted class, from 0 to 1",
    "place": "place of the true class when the classes are sorted by their logits: 0 is a top-1 hit, and "
    "0 to 4 are top-5 hits",
    "loss": "cross-entropy in nats; exp(-loss) is the probability of the true class",
}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of ``clips`` videos: ``top1`` and ``top5`` are fractions in [0,1], ``loss`` is the mean
    cross-entropy."""

    top1: float
    top5: float
    loss: float
    clips: int


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in eval mode for the block, and back in its former mode at the end."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def mean_logits(model: nn.Module, batch: Batch, device: torch.device) -> torch.Tensor:
    """The mean of the logits of each video's views, [B,classes].

    Args:
        model: in eval mode, on ``device``; takes clips [B*V,T,3,H,W] and returns logits [B*V,classes].
        batch: of B videos with V views each.

    Raises:
        RunError: the loss of a video is NaN or infinite.
    """
    logits = model(to_model_input(model, batch.clips.to(device)))
    return logits.unflatten(0, (len(batch.labels), -1)).mean(1)


@torch.no_grad()
def predict_batch(
    model: nn.Module, batch: Batch, device: torch.device, classes: int | None = None
) -> list[Prediction]:
    """The predictions for one batch; arguments as of :func:`mean_logits`.

    Args:
        classes: the number of classes that the model must have; None for any that has the labels.

    Raises:
        RunError: also if the model has another number of classes.
    """
    labels = batch.labels.to(device)
    logits = mean_logits(model, batch, device)
    if classes not in (None, logits.shape[1]):
        raise RunError(f"the model has {logits.shape[1]} classes, the data set has {classes}")
    order = logits.argsort(1, descending=True)
    places = (order == labels[:, None]).int().argmax(1)
    losses = F.cross_entropy(logits, labels, reduction="none")
    columns = (labels, order[:, 0], places, losses, logits.softmax(1).amax(1))
    rows = zip(batch.ids, *(column.tolist() for column in columns), strict=True)
    predictions = [Prediction(*row) for row in rows]
    if (odd := next((p for p in predictions if not math.isfinite(p.loss)), None)) is not None:
        raise RunError(f"the model's loss on clip {odd.id} is {odd.loss}, expected a finite number")
    return predictions


def predict(
    model: nn.Module, batches: Iterable[Batch], device: torch.device, classes: int | None = None
) -> list[Prediction]:
    """The predictions for all clips of ``batches``, see :func:`predict_batch`.

    Ranks, each with its share of the clips, all return the predictions for all clips. The model returns to
    its former mode.

    Raises:
        DataError: the batches are a loader's, and too many of its clips cannot be decoded.
        RunError: the loss of a video is NaN or infinite, or the model has another number of classes.
    """
    found: dict[str, Prediction] = {}
    with evaluating(model), ranks.together():
        for batch in batches:
            found |= {p.id: p for p in predict_batch(model, batch, device, classes)}
    return list(ranks.union(found).values())


def score(predictions: list[Prediction]) -> Evaluation:
    """The scores over ``predictions``, of which there must be at least one."""
    clips = len(predictions)

    def mean(values: Iterable[float]) -> float:
        return sum(values) / clips

    return Evaluation(
        top1=mean(p.place < 1 for p in predictions),
        top5=mean(p.place < 5 for p in predictions),
        loss=mean(p.loss for p in predictions),
        clips=clips,
    )


def columns_of(path: Path) -> Path:
    """The text file next to the CSV ``path`` that says what its columns mean."""
    return path.with_suffix(".columns.txt")


def write_predictions(path: Path, predictions: list[Prediction], classes: Sequence[str]) -> None:
    """Write a CSV with a row for every video, in the order of their ids, and a text on what its columns mean.

    Args:
        path: of the CSV; the text goes to :func:`columns_of` it.
        classes: their names by label.
    """
    rows = []
    for p in sorted(predictions, key=lambda p: p.id):
        names = {"class": classes[p.label], "predicted_class": classes[p.predicted]}
        values = dataclasses.asdict(p) | names
        rows.append({name: values[name] for name in COLUMNS})
    width = max(map(len, COLUMNS))
    lines = [f"Columns of {path.name}; one row per video, in the order of their ids.", ""]
    lines += [f"{name:{width}}  {meaning}" for name, meaning in COLUMNS.items()]
    lines += ["", "Text that a spreadsheet would take for a formula has an apostrophe in front."]
    write_text(columns_of(path), printable("\n".join(lines)) + "\n")
    write_csv(path, rows)


def read_predictions(path: Path) -> list[Prediction]:
    """Read a CSV of :func:`write_predictions`; DataError, naming the file, if it is not one.

    Names of classes are not needed, and neither are scores.
    """
    try:
        return [
            Prediction(
                id=row.pop("id"),
                label=int(row.pop("label")),
                predicted=int(row.pop("predicted")),
                place=int(row.pop("place")),
                loss=float(row.pop("loss")),
                score=float(row["score"]) if "score" in row else None,
            )
            for row in read_csv(path)
        ]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path} is not a file of predictions: {error}") from None
