"""The model for a data set: from random weights, or from anybody's checkpoint."""

from pathlib import Path

from torch import nn

from taf_fast import models
from taf_fast.data import VideoDataset, raw_ssv1_classes
from taf_fast.run.checkpoint import read_info, require_classes
from taf_fast.run.config import RunError


def build_model(
    dataset: VideoDataset,
    name: str,
    num_segments: int,
    checkpoint: Path | None,
    class_order: str | None,
    trust_checkpoint: bool = False,
    dropout: float | None = None,
    imagenet: Path | None = None,
) -> nn.Module:
    """A model of the classes of ``dataset``, on the CPU. What a file that is not of this project had to
    offer is printed.

    Args:
        name, num_segments: see :func:`taf_fast.models.build`.
        checkpoint: weights to load, as :func:`taf_fast.models.load` can; None for random ones.
        class_order: of a checkpoint that does not name its classes: "alphabetical" or "raw", see
            :class:`taf_fast.run.config.FinetuneConfig`. Needed for MMAction2's on Something-Something V1.
        trust_checkpoint: run the code a ``torch.save`` file may hold.
        dropout: None for the family's own.
        imagenet: torchvision's ResNet weights to begin with, where there is no checkpoint.

    Raises:
        RunError, CheckpointError: the checkpoint is of another model or of other classes.
    """
    info = None if checkpoint is None else read_info(checkpoint)
    # Of another family's file they would mean nothing to the builder; loading it says what is wrong.
    same_family = info is not None and info.model.rpartition("_")[0] == name.rpartition("_")[0]
    options = dict(info.options) if same_family else {}
    if dropout is not None:
        options["dropout"] = dropout
    model = models.build(name, len(dataset.classes), num_segments, **options)
    if imagenet is not None:
        print(models.load_imagenet(model, imagenet))
    if checkpoint is None:
        return model
    raw_classes = None
    if info is not None:
        require_classes(checkpoint, info, dataset.classes)
    elif class_order == "raw":
        if dataset.name != "ssv1":
            raise RunError(
                f"class_order raw is a matter of Something-Something V1, the data are {dataset.name}"
            )
        raw_classes = raw_ssv1_classes(dataset.root)
    report = models.load(model, checkpoint, trust=trust_checkpoint, raw_classes=raw_classes)
    if dataset.name == "ssv1" and report.source.origin == "mmaction2" and class_order is None:
        raise RunError(
            f"checkpoint {checkpoint} is MMAction2's, which numbers the classes of Something-Something V1 as "
            "the labels file does: pass --class-order raw, or alphabetical if this one does not"
        )
    if info is None:
        print(report)
    return model
