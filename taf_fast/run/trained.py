"""A trained model together with the validation videos it is to be tried on."""

import dataclasses
from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn

from taf_fast import models
from taf_fast.data import (
    ONE_VIEW,
    ClipLoader,
    EvaluationViews,
    TrainingView,
    VideoDataset,
    read_dataset,
    read_manifest,
    scan,
)
from taf_fast.run import ranks
from taf_fast.run.checkpoint import read_info
from taf_fast.run.config import FinetuneConfig, RunError
from taf_fast.run.model import build_model
from taf_fast.run.recipes import official_sampling


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model on ``device``, and the loader of the validation videos as its official code takes them."""

    model: nn.Module
    loader: ClipLoader
    dataset: VideoDataset
    device: torch.device


def open_trained(
    data: Path,
    checkpoint: Path,
    device: torch.device,
    *,
    num_segments: int | None = None,
    size: int | None = None,
    class_order: str | None = None,
    manifest: Path | None = None,
    views: EvaluationViews = ONE_VIEW,
    batch_size: int = 32,
    threads: int = 2,
    trust_checkpoint: bool = False,
    clips: Collection[str] | None = None,
) -> Trained:
    """Load a checkpoint of any origin that finetune reads, and look at the validation videos of ``data``.

    Ranks get each their share of the videos.

    Args:
        num_segments, size: None for the checkpoint's own, or 8 frames of 224 pixels.
        class_order: see :func:`taf_fast.run.model.build_model`.
        manifest: file of ``taf-fast scan``; None for the one in ``data``, if there is one.
        clips: ids of the videos to look at; None for all.

    Raises:
        RunError, DataError, CheckpointError: what does not exist, cannot be read or does not fit.
    """
    given = {"num_segments": num_segments, "size": size, "batch_size": batch_size, "threads": threads}
    for name, value in given.items():
        if value is not None and value < 1:
            raise RunError(f"{name} must be at least 1, got {value}")
    known = describe(checkpoint, trust_checkpoint)
    num_segments = num_segments or known.get("num_segments", FinetuneConfig.num_segments)
    size = size or known.get("size", FinetuneConfig.size)
    dataset = read_dataset(data, "validation")
    if clips is not None:
        chosen = tuple(sample for sample in dataset.samples if sample.id in clips)
        dataset = dataclasses.replace(dataset, samples=chosen)
    model = build_model(dataset, known["model"], num_segments, checkpoint, class_order, trust_checkpoint)
    scanned = ranks.from_first(lambda: scan(dataset, known=read_manifest(data, manifest)))
    device = ranks.own_device(str(device))
    loader = ClipLoader(
        scanned,
        num_segments,
        size,
        batch_size,
        train=False,
        threads=threads,
        rank=ranks.rank(),
        world_size=ranks.count(),
        view=TrainingView(official_sampling(known["model"])),
        views=views,
    )
    return Trained(model.to(device).eval(), loader, dataset, device)


def describe(checkpoint: Path, trust: bool) -> dict:
    """What a checkpoint says, or shows, of its model: values of FinetuneConfig."""
    info = read_info(checkpoint)
    if info is None:
        return {"model": models.inspect(checkpoint, trust).model}
    return {"model": info.model, "num_segments": info.num_segments, "size": info.size}
