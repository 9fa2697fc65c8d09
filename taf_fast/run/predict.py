"""What a model sees in clips without labels."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from taf_fast.data import ONE_VIEW, ClipLoader, EvaluationViews, TrainingView, read_files
from taf_fast.errors import RunError
from taf_fast.measure.evaluate import evaluating, mean_logits
from taf_fast.models.contract import offered
from taf_fast.run.checkpoint import weights_file
from taf_fast.run.config import FinetuneConfig
from taf_fast.run.model import load_model
from taf_fast.run.recipes import official_sampling
from taf_fast.run.scanned import scanned
from taf_fast.run.trained_input import say_if_input_differs


@dataclass(frozen=True)
class Guess:
    """What a model sees in one clip: the names of the most probable classes, and their probabilities in
    [0,1], largest first. Classes without a name have the text of their number."""

    clip: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Guesses:
    """One for each clip that could be decoded; the reasons of the others by clip."""

    guesses: list[Guess]
    left_out: dict[str, str]


def predict(
    model: nn.Module | str | os.PathLike,
    paths: str | os.PathLike | Iterable[str | os.PathLike],
    top: int = 5,
    *,
    num_segments: int | None = None,
    size: int | None = None,
    views: EvaluationViews = ONE_VIEW,
    batch_size: int = 8,
    workers: int | None = None,
    threads: int | None = None,
    device: str | torch.device | None = None,
    trust_checkpoint: bool = False,
) -> Guesses:
    """Classify clips: video files, folders of frames, and folders of these.

    Args:
        model: a checkpoint of any origin that finetune reads, the folder of a finished run, or a model that
            takes clips [B,T,3,H,W] to logits [B,classes]; it returns to its former mode.
        top: how many classes of each clip.
        num_segments, size: None for the model's own, or else 8 frames of 224 pixels.
        views: crops and clips of a video, whose mean logits count.
        workers, threads: see :class:`taf_fast.data.ClipLoader`.
        device: where the model moves and stays; None for where it is, and for the CPU with a checkpoint.
        trust_checkpoint: run the code that a ``torch.save`` file may hold.

    Raises:
        RunError, DataError, CheckpointError: a value is out of range, a file does not exist or cannot be
            read, or the model's scores are not finite.
    """
    if top < 1:
        raise RunError(f"top must be at least 1, got {top}")
    known: dict[str, Any] = {}
    checkpoint: Path | None = None
    if not isinstance(model, nn.Module):
        checkpoint = weights_file(Path(model))
        model, known = load_model(checkpoint, num_segments, trust_checkpoint)
    own = offered(model, "num_segments")
    num_segments = num_segments or known.get("num_segments") or own or FinetuneConfig.num_segments
    if device is None:
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    dataset = read_files(paths, known.get("classes", ()))
    sampling = official_sampling(known["model"]) if "model" in known else TrainingView().sampling
    size = size or known.get("size") or FinetuneConfig.size
    if checkpoint is not None:
        say_if_input_differs(checkpoint, known, num_segments, size)
    try:
        loader = ClipLoader(
            scanned(dataset, {}, quick=True),
            num_segments,
            size,
            batch_size,
            train=False,
            workers=workers,
            threads=threads,
            quarantine_limit=1.0,
            view=TrainingView(sampling),
            views=views,
        )
    except ValueError as error:
        raise RunError(str(error)) from None
    device = torch.device(device)
    guesses: list[Guess] = []
    with evaluating(model.to(device)):
        for batch in loader:
            probabilities = mean_logits(model, batch, device).softmax(1)
            for clip, finite in zip(batch.ids, probabilities.isfinite().all(1).tolist(), strict=True):
                if not finite:
                    raise RunError(f"the model's scores of {clip} are not finite numbers")
            best = probabilities.topk(min(top, probabilities.shape[1]), dim=1)
            for clip, labels, values in zip(
                batch.ids, best.indices.tolist(), best.values.tolist(), strict=True
            ):
                names = (dataset.classes[label] if dataset.classes else str(label) for label in labels)
                guesses.append(Guess(clip, tuple(names), tuple(values)))
    return Guesses(guesses, dict(loader.quarantined))
