"""A trained model with the validation videos to try it on."""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from taf_fast import models
from taf_fast.data import (
    ONE_VIEW,
    Batch,
    ClipLoader,
    EvaluationViews,
    TrainingView,
    VideoDataset,
    read_dataset,
)
from taf_fast.data.formats.annotations import SPLITS
from taf_fast.data.views.sampling import val_frames
from taf_fast.errors import DataError
from taf_fast.models.contract import offered
from taf_fast.process import ranks
from taf_fast.run.checkpoint import read_info, weights_file
from taf_fast.run.config import FIELDS, FinetuneConfig, hint_of
from taf_fast.run.model import build_model
from taf_fast.run.recipes import official_sampling
from taf_fast.run.scanned import scanned_by_first
from taf_fast.run.trained_input import say_if_input_differs
from taf_fast.run.values import check, declaration, wrong


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model in eval mode on ``device``, and the validation videos as its official code takes them."""

    model: nn.Module
    loader: ClipLoader
    dataset: VideoDataset
    device: torch.device


def open_trained(
    data: Path,
    checkpoint: Path | nn.Module,
    device: torch.device,
    *,
    num_segments: int | None = None,
    size: int | None = None,
    class_order: str | None = None,
    manifest: Path | None = None,
    views: EvaluationViews = ONE_VIEW,
    batch_size: int = 32,
    workers: int | None = None,
    threads: int | None = None,
    quarantine_limit: float = FinetuneConfig.quarantine_limit,
    trust_checkpoint: bool = False,
    clips: Collection[str] | None = None,
    split: str = "validation",
) -> Trained:
    """Load a checkpoint of any origin that finetune reads, and scan the videos of a split of ``data``.

    Each rank gets its share of the videos.

    Args:
        checkpoint: a file, or a model of one's own that takes clips [B,T,3,H,W] to logits [B,classes], its
            classes in the order of the data set's. A model's frames are taken as TSM's.
        num_segments, size: None for the checkpoint's or the model's own, or else 8 frames of 224 pixels.
        class_order: see :func:`taf_fast.run.model.build_model`.
        manifest: file of ``taf-fast scan``; None for the one in ``data``, if there is one.
        quarantine_limit: the fraction of bad videos, in [0,1], above which none is tried.
        workers, threads: see :class:`taf_fast.data.ClipLoader`.
        clips: ids of the only videos to scan and load; None for all.
        split: "validation", or "train", which are seen as validation videos are.

    Raises:
        RunError, DataError, CheckpointError: a file does not exist, cannot be read or does not fit.
    """
    given: dict[str, Any] = {
        "num_segments": num_segments,
        "size": size,
        "batch_size": batch_size,
        "workers": workers,
        "threads": threads,
        "quarantine_limit": quarantine_limit,
        "device": str(device),
    }
    for name, value in given.items():
        if value is not None:
            check(name, value, hint_of(name), declaration(FIELDS[name]))
    if workers is not None and threads is not None:
        raise wrong("workers", f"none with threads = {threads}", workers)
    if split not in SPLITS:
        raise wrong("split", f"one of {', '.join(SPLITS)}", split)
    dataset = read_dataset(data, split)
    if isinstance(checkpoint, nn.Module):
        known = {"num_segments": offered(checkpoint, "num_segments")}
    else:
        checkpoint = weights_file(checkpoint)
        known = describe(checkpoint, trust_checkpoint)
    num_segments = num_segments or known.get("num_segments") or FinetuneConfig.num_segments
    size = size or known.get("size") or FinetuneConfig.size
    if not isinstance(checkpoint, nn.Module):
        say_if_input_differs(checkpoint, known, num_segments, size)
    if clips is not None:
        chosen = tuple(sample for sample in dataset.samples if sample.id in clips)
        dataset = dataclasses.replace(dataset, samples=chosen)
    if isinstance(checkpoint, nn.Module):
        model = checkpoint
    else:
        model = build_model(
            dataset,
            known["model"],
            num_segments,
            checkpoint=checkpoint,
            class_order=class_order,
            trust_checkpoint=trust_checkpoint,
        )
    (videos,) = scanned_by_first([dataset], manifest, [True])
    device = ranks.own_device(str(device))
    loader = ClipLoader(
        videos,
        num_segments,
        size,
        batch_size,
        train=False,
        workers=workers,
        threads=threads,
        rank=ranks.rank(),
        world_size=ranks.count(),
        quarantine_limit=quarantine_limit,
        view=TrainingView(official_sampling(known["model"])) if "model" in known else TrainingView(),
        views=views,
    )
    return Trained(model.to(device).eval(), loader, dataset, device)


def load_clip(loader: ClipLoader, id: str | None) -> Batch:
    """The batch of one clip, with the frames and crop that ``loader`` takes.

    Args:
        id: None for the first clip without a known defect.

    Raises:
        DataError: no such clip, or it cannot be read.
    """
    chosen = [clip for clip in loader.manifest.good if id is None or clip.id == id][:1]
    if not chosen:
        reason = "no such clip" if id is None else loader.manifest.defects.get(id, "no such clip")
        raise DataError(f"clip {id!r}: {reason}, expected the id of a readable video")
    manifest = dataclasses.replace(loader.manifest, clips=tuple(chosen))
    alone = ClipLoader(
        manifest, loader.num_segments, loader.size, batch_size=1, train=False, view=loader.view
    )
    return next(iter(alone))


def taken_frames(loader: ClipLoader, id: str) -> list[int]:
    """The numbers in the video, from 0, of the frames that ``loader`` takes for one view."""
    clip = next(clip for clip in loader.manifest.clips if clip.id == id)
    return val_frames(clip.frames, loader.num_segments, loader.view.sampling).tolist()


def describe(checkpoint: Path, trust: bool) -> dict:
    """The values of FinetuneConfig that a checkpoint determines: ``model``, and if it was written here also
    ``num_segments`` and ``size``."""
    checkpoint = weights_file(checkpoint)
    info = read_info(checkpoint)
    if info is None:
        return {"model": models.inspect(checkpoint, trust).model}
    return {"model": info.model, "num_segments": info.num_segments, "size": info.size}
