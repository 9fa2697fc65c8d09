"""Models with their weights: random ones, or those of a checkpoint of any supported origin."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from taf_fast import models
from taf_fast.data import VideoDataset, raw_ssv1_classes
from taf_fast.errors import CheckpointError, DataError, RunError
from taf_fast.models.contract import view_of
from taf_fast.plain import say
from taf_fast.run.checkpoint import read_info, require_classes, require_whole, weights_file
from taf_fast.run.config import FinetuneConfig


def build_model(
    dataset: VideoDataset,
    name: str,
    num_segments: int,
    *,
    checkpoint: Path | None = None,
    class_order: str | None = None,
    trust_checkpoint: bool = False,
    dropout: float | None = None,
    imagenet: Path | None = None,
    new_head: bool = False,
) -> nn.Module:
    """Build a model for the classes of ``dataset``, on the CPU, and load its weights.

    For a checkpoint that this project did not write, print a report of what was loaded.

    Args:
        name, num_segments: see :func:`taf_fast.models.build`.
        checkpoint: weights that :func:`taf_fast.models.load` reads, or the folder of a finished run; None for
            random weights.
        class_order: of a checkpoint that does not name its classes, "alphabetical" or "raw", see
            :class:`taf_fast.run.config.FinetuneConfig`. MMAction2's on Something-Something V1 need it.
        trust_checkpoint: run the code that a ``torch.save`` file may hold.
        dropout: probability in [0,1); None for the model family's own.
        imagenet: torchvision's ResNet weights to start from instead of a checkpoint.
        new_head: keep the random classifier, and take all else from the checkpoint.

    Raises:
        DataError: the data set has a single class.
        ClassesError: the checkpoint has other classes than the data set, and ``new_head`` is False.
        RunError, CheckpointError: the checkpoint holds another model or values that are not finite.
    """
    if len(dataset.classes) < 2:
        raise DataError(f"{dataset.root} has {len(dataset.classes)} class, expected at least 2 to tell apart")
    checkpoint = None if checkpoint is None else weights_file(checkpoint)
    info = None if checkpoint is None else read_info(checkpoint)
    options: dict = {}
    if info is not None:
        if info.model != name:
            raise CheckpointError(f"checkpoint {checkpoint} is a {info.model} file; the run wants {name}")
        options |= info.options
    if dropout is not None:
        options["dropout"] = dropout
    model = models.build(name, len(dataset.classes), num_segments, **options)
    if imagenet is not None:
        say(models.load_imagenet(model, imagenet))
    if checkpoint is None:
        return model
    raw_classes = None
    if info is not None:
        if not new_head:
            require_classes(checkpoint, info, dataset.classes)
        require_whole(checkpoint)
    elif class_order == "raw":
        if dataset.name != "ssv1":
            raise RunError(
                f"class_order 'raw' only applies to Something-Something V1; the data set is {dataset.name}"
            )
        raw_classes = raw_ssv1_classes(dataset.root)
    report = models.load(
        model, checkpoint, trust=trust_checkpoint, raw_classes=raw_classes, new_head=new_head
    )
    unordered = class_order is None and not new_head
    if dataset.name == "ssv1" and report.source.origin == "mmaction2" and unordered:
        raise RunError(
            f"checkpoint {checkpoint} is MMAction2's, which numbers the classes of Something-Something V1 as "
            "the labels file does: pass --class-order raw, or alphabetical if this one does not"
        )
    if info is None:
        say(report)
    return model


def load_model(
    checkpoint: Path, num_segments: int | None = None, trust: bool = False
) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model that a checkpoint belongs to, with its weights, on the CPU.

    Args:
        checkpoint: weights that :func:`taf_fast.models.load` reads.
        num_segments: frames of a clip; None for the checkpoint's own, or 8.
        trust: run the code that a ``torch.save`` file may hold.

    Returns:
        The model, and what the file says: its ``model`` name, and if it was written here also
        ``num_segments``, ``size`` and ``classes``.

    Raises:
        CheckpointError: the file cannot be read, or holds no known model.
    """
    info = read_info(checkpoint)
    if info is None:
        found = models.inspect(checkpoint, trust)
        known: dict[str, Any] = {"model": found.model}
        model = models.build(
            found.model, found.num_classes, num_segments or FinetuneConfig.num_segments, **found.options
        )
    else:
        require_whole(checkpoint)
        known = {name: getattr(info, name) for name in ("model", "num_segments", "size", "classes")}
        model = models.build(info.model, len(info.classes), num_segments or info.num_segments, **info.options)
    models.load(model, checkpoint, trust=trust)
    return model, known


@torch.no_grad()
def norm_of_single_values(model: nn.Module, clip: Tensor) -> str | None:
    """The name of the first batch norm that gets a single value per channel of a clip [1,T,3,H,W]: these have
    no variance to train with. None if there is none."""
    found: list[str] = []

    def look(name: str, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].numel() == inputs[0].shape[1]:
            found.append(name)

    hooks = [
        norm.register_forward_pre_hook(lambda _, inputs, name=name: look(name, inputs))
        for name, norm in model.named_modules()
        if isinstance(norm, _BatchNorm)
    ]
    training = model.training
    try:
        view_of(model.eval()).forward(clip)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return found[0] if found else None
