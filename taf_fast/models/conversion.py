"""Weights to and from the official projects' checkpoints and MMAction2's."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from taf_fast.models import origins
from taf_fast.models.origins import Source
from taf_fast.models.pickles import CheckpointError, read_state_dict

# What a file may lack, or have, without being another model's.
_OPTIONAL = ".num_batches_tracked"
_IGNORED = "cls_head.new_cls."

_CLASSIFIERS = ("fc.weight", "fc.bias", "auxiliary.fc.weight", "auxiliary.fc.bias")


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What a file and a model had in common: names of the model's tensors (``loaded``, ``missing``), names
    of the file's (``unexpected``), and sentences about those of another shape (``mismatched``)."""

    path: Path
    source: Source
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        return (
            *(f"missing {name}" for name in self.missing),
            *(f"unexpected {name}" for name in self.unexpected),
            *self.mismatched,
        )

    def __str__(self) -> str:
        summary = (
            f"{self.path}: {self.source.family} ({self.source.origin}), {len(self.loaded)} tensors loaded, "
            f"{len(self.missing)} missing, {len(self.unexpected)} unexpected, "
            f"{len(self.mismatched)} of another shape"
        )
        return "\n  ".join([summary, *self.problems])


@dataclasses.dataclass(frozen=True)
class FileInfo:
    """What a file's tensors tell of its model: arguments of :func:`taf_fast.models.build`."""

    source: Source
    model: str
    num_classes: int
    options: dict


def load(
    model: nn.Module,
    path: str | os.PathLike,
    strict: bool = True,
    trust: bool = False,
    raw_classes: Sequence[str] | None = None,
) -> LoadReport:
    """Load a checkpoint of this project, of the official TSM, GST, TAM (IBM) or TPN code, or of MMAction2's
    TSM or TPN. Which it is shows in its keys.

    A TSM or TPN model's ``backbone.mixed_shortcut`` is set to what the file's origin does.

    Args:
        model: from :func:`taf_fast.models.build`, of the file's family, depth and number of classes.
        path: a safetensors file, or one of ``torch.save``.
        strict: raise, with the model as it was, unless every tensor of the model and of the file is
            matched; False loads what fits.
        trust: run the code a ``torch.save`` file may hold.
        raw_classes: the class names in the file's order, where that is not alphabetical: MMAction2
            numbers Something-Something V1 as the data set's labels file does. The classifier's rows are
            brought into alphabetical order.

    Raises:
        CheckpointError: unreadable, of another family, or (strict) anything missing, unexpected or of
            another shape.
    """
    path = Path(path)
    weights = read_state_dict(path, trust)
    source = _source(path, weights)
    if source.family != model.family:
        raise CheckpointError(f"checkpoint {path} holds a {source.family} model, expected {model.family}")
    ours = model.state_dict()
    names = {origins.canonical(origins.rename(name, source)): name for name in ours}
    found: dict[str, Tensor] = {}
    unexpected, mismatched = [], {}
    for foreign, tensor in weights.items():
        name = names.get(origins.canonical(foreign))
        if name is None:
            if not foreign.startswith(_IGNORED):
                unexpected.append(foreign)
            continue
        expected = origins.reshape(name, ours[name], source)
        if tensor.shape == expected.shape:
            found[name] = tensor.reshape(ours[name].shape)
        else:
            mismatched[name] = f"{foreign} is {list(tensor.shape)}, expected {list(expected.shape)}"
    if raw_classes is not None:
        order = _alphabetical(raw_classes, model.num_classes)
        found |= {name: found[name][order] for name in _CLASSIFIERS if name in found}
    missing = [name for name in ours if name not in found | mismatched and not name.endswith(_OPTIONAL)]
    report = LoadReport(
        path, source, tuple(found), tuple(missing), tuple(unexpected), tuple(mismatched.values())
    )
    if strict:
        _require_no_problems(report, weights, model)
    model.load_state_dict(found, strict=False)
    if source in origins.MIXED_SHORTCUT:
        model.backbone.mixed_shortcut = origins.MIXED_SHORTCUT[source]
    return report


def load_imagenet(model: nn.Module, path: str | os.PathLike) -> LoadReport:
    """Start ``model`` from torchvision's ResNet of its depth, as the official projects do.

    GST's spatial convolutions take the first input and output channels of the 3x3 convolutions they
    stand in for. What ImageNet weights cannot give stays as it is and is ``missing`` in the report:
    GST's temporal convolutions, TAM's weights over time, TPN's neck, the classifiers.

    Raises:
        CheckpointError: unreadable, or not a ResNet of this depth.
    """
    path = Path(path)
    weights = read_state_dict(path)
    if (source := _source(path, weights)) != Source("resnet", "torchvision"):
        raise CheckpointError(f"checkpoint {path} holds a {source.family} model, expected an image ResNet")
    trunk = {name: tensor for name, tensor in weights.items() if not name.startswith("fc.")}
    ours, found = model.state_dict(), {}
    for name, tensor in ours.items():
        image = trunk.pop(name.removeprefix("backbone.").replace(".conv2.spatial.", ".conv2."), None)
        if image is not None:
            if ".conv2.spatial." in name:
                image = image[: tensor.shape[0], : tensor.shape[1]]
            found[name] = image
    if trunk or any(found[name].shape != ours[name].shape for name in found):
        raise CheckpointError(f"checkpoint {path} is a ResNet of another depth than the model")
    model.load_state_dict(found, strict=False)
    missing = tuple(name for name in ours if name not in found and not name.endswith(_OPTIONAL))
    return LoadReport(path, source, tuple(found), missing, (), ())


def inspect(path: str | os.PathLike, trust: bool = False) -> FileInfo:
    """Find out what model a checkpoint is of, from its tensors' names and shapes.

    Raises:
        CheckpointError: as :func:`load`, or ImageNet weights.
    """
    path = Path(path)
    weights = read_state_dict(path, trust)
    source = _source(path, weights)
    if not origins.readable(source):
        raise CheckpointError(f"checkpoint {path} holds an image ResNet, expected a video model")
    shapes = {origins.canonical(name): tensor.shape for name, tensor in weights.items()}

    def shape(name: str):
        ending = origins.canonical(origins.rename(f"backbone.{name}", source))
        if ending not in shapes:
            raise CheckpointError(f"checkpoint {path} has no {ending}, expected in a {source.family} model")
        return shapes[ending]

    # Only bottlenecks have 1x1 convolutions first.
    depth = 50 if shape("layer1.0.conv1.weight")[-1] == 1 else 18
    family = source.family
    if family == "gst" and shape("layer1.0.conv2.temporal.weight")[1] == 64:
        family = "gst_large"
    classifier = origins.canonical(origins.rename("fc.weight", source))
    if classifier not in shapes:
        raise CheckpointError(f"checkpoint {path} has no {classifier}, expected in a {family} model")
    options = {}
    if source in origins.MIXED_SHORTCUT:
        options["mixed_shortcut"] = origins.MIXED_SHORTCUT[source]
    return FileInfo(source, f"{family}_resnet{depth}", shapes[classifier][0], options)


def export(model: nn.Module, origin: str, raw_classes: Sequence[str] | None = None) -> dict:
    """What to ``torch.save`` for the code a model comes from.

    Args:
        model: from :func:`taf_fast.models.build`, without adversarial batch norms.
        origin: ``"official"``, or ``"mmaction2"`` for TSM and TPN.
        raw_classes: class names in the order the file is to have, if not alphabetical (see
            :func:`load`).

    Returns:
        ``state_dict``, and beside it the entries that code asks for.

    Raises:
        CheckpointError: no such code for this family, or it would compute other logits from the weights.
    """
    source = Source(model.family, origin)
    if origin not in ("official", "mmaction2") or not origins.readable(source):
        raise CheckpointError(f"a {model.family} model cannot be written for {origin!r}")
    if origins.MIXED_SHORTCUT.get(source, model.backbone.mixed_shortcut) != model.backbone.mixed_shortcut:
        does = "see" if origins.MIXED_SHORTCUT[source] else "do not see"
        raise CheckpointError(
            f"the {origin} {model.family}'s shortcut convolutions {does} shifted frames, contrary to this "
            "model's (mixed_shortcut): its logits would be others"
        )
    state = model.state_dict()
    if any(".adversarial." in name for name in state):
        raise CheckpointError("the model has adversarial batch norms: strip_adversarial_bn(model) first")
    if raw_classes is not None:
        order = _alphabetical(raw_classes, model.num_classes)
        for name in _CLASSIFIERS:
            if name in state:
                rows = state[name].new_empty(state[name].shape)
                rows[order] = state[name]
                state[name] = rows
    weights = {
        origins.rename(name, source): origins.reshape(name, tensor, source).detach().cpu().contiguous()
        for name, tensor in state.items()
    }
    if origin == "mmaction2" or model.family == "tpn":
        return {"meta": {}, "state_dict": weights}
    best = "best_top1" if model.family == "tam" else "best_prec1"
    return {"epoch": 0, "arch": f"resnet{model.backbone.depth}", "state_dict": weights, best: 0.0}


def _source(path: Path, weights: dict[str, Tensor]) -> Source:
    source = origins.identify(weights)
    if source is None:
        raise CheckpointError(
            f"checkpoint {path} is of no model known here, its first tensors: {', '.join(list(weights)[:3])}"
        )
    return source


def _require_no_problems(report: LoadReport, weights: dict[str, Tensor], model: nn.Module) -> None:
    if not report.problems:
        return
    classifier = origins.canonical(origins.rename("fc.weight", report.source))
    for name, tensor in weights.items():
        if origins.canonical(name) == classifier and len(tensor) != model.num_classes:
            raise CheckpointError(
                f"checkpoint {report.path} has {len(tensor)} classes, expected {model.num_classes}"
            )
    shown = "; ".join(report.problems[:5])
    raise CheckpointError(
        f"checkpoint {report.path} does not fit the model ({len(report.problems)} problems): {shown}"
    )


def _alphabetical(raw_classes: Sequence[str], num_classes: int) -> list[int]:
    """Positions in ``raw_classes`` of its names in alphabetical order."""
    if len(set(raw_classes)) != num_classes or len(raw_classes) != num_classes:
        raise CheckpointError(
            f"{len(raw_classes)} class names ({len(set(raw_classes))} of them different) for a model of "
            f"{num_classes} classes"
        )
    return sorted(range(num_classes), key=lambda index: raw_classes[index])
