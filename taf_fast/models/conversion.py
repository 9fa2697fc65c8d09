"""Load and write checkpoints of the official projects and of MMAction2."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from taf_fast.errors import CheckpointError, ClassesError
from taf_fast.models import origins
from taf_fast.models.origins import Source
from taf_fast.models.pickles import read_state_dict, require_finite

# Tensors that a file may lack, or have in addition.
_OPTIONAL = ".num_batches_tracked"
_IGNORED = "cls_head.new_cls."

_CLASSIFIERS = ("fc.weight", "fc.bias", "auxiliary.fc.weight", "auxiliary.fc.bias")


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """How a file matched a model.

    ``loaded`` and ``missing`` are names of the model's tensors, ``unexpected`` are names of the file's
    tensors, and ``mismatched`` are sentences about tensors of another shape.
    """

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
    """The model that a file's tensors belong to, as arguments of :func:`taf_fast.models.build`."""

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
    new_head: bool = False,
) -> LoadReport:
    """Load a checkpoint into ``model``, in place.

    The checkpoint may come from this project, from the official TSM, GST, TAM (IBM) or TPN code, or from
    MMAction2's TSM or TPN; its keys show which. ``backbone.mixed_shortcut`` of a TSM or TPN model is set to
    the behaviour of that origin.

    Args:
        model: from :func:`taf_fast.models.build`, with the file's family, depth and number of classes.
        path: a safetensors file, or a file written by ``torch.save``.
        strict: raise unless every tensor of the model and of the file is matched, and leave the model
            unchanged then; False loads what fits.
        trust: run the code that a ``torch.save`` file may contain.
        raw_classes: the class names in the file's order, if that is not alphabetical: MMAction2 numbers
            Something-Something V1 like the data set's labels file. The rows of the classifier are sorted into
            alphabetical order.
        new_head: leave the model's linear classifiers as they are, and those of the file unread. The file may
            have another number of classes.

    Raises:
        ClassesError: strict, and the file has another number of classes.
        CheckpointError: the file is unreadable or of another family, a tensor to load is not of finite
            floating-point numbers, or, if strict, one is missing, unexpected or of another shape.
    """
    path = Path(path)
    weights = read_state_dict(path, trust)
    source = _source(path, weights)
    if source.family != model.family:
        if origins.readable(source):
            _require_same_model(path, source, weights, model)
        raise CheckpointError(f"checkpoint {path} holds a {source.family} model, expected {model.family}")
    ours = model.state_dict()
    kept = _CLASSIFIERS if new_head else ()
    names = {origins.canonical(origins.rename(name, source)): name for name in ours}
    found: dict[str, Tensor] = {}
    unexpected, mismatched = [], {}
    for foreign, tensor in weights.items():
        name = names.get(origins.canonical(foreign))
        if name is None:
            if not foreign.startswith(_IGNORED):
                unexpected.append(foreign)
            continue
        if name in kept:
            continue
        expected = origins.reshape(name, ours[name], source)
        if tensor.shape == expected.shape:
            found[name] = tensor.reshape(ours[name].shape)
        else:
            mismatched[name] = f"{foreign} is {list(tensor.shape)}, expected {list(expected.shape)}"
    if raw_classes is not None:
        order = _alphabetical(raw_classes, model.num_classes)
        found |= {name: found[name][order] for name in _CLASSIFIERS if name in found}
    known = {*found, *mismatched, *kept}
    missing = [name for name in ours if name not in known and not name.endswith(_OPTIONAL)]
    report = LoadReport(
        path, source, tuple(found), tuple(missing), tuple(unexpected), tuple(mismatched.values())
    )
    if strict:
        _require_no_problems(report, weights, model)
    require_finite(path, found)
    model.load_state_dict(found, strict=False)
    if source in origins.MIXED_SHORTCUT:
        model.backbone.mixed_shortcut = origins.MIXED_SHORTCUT[source]
    return report


def load_imagenet(model: nn.Module, path: str | os.PathLike) -> LoadReport:
    """Initialise ``model`` from torchvision's ResNet of its depth, in place, as the official projects do.

    GST's spatial convolutions take the first input and output channels of the 3x3 convolutions that they
    replace. Tensors without a counterpart in the ImageNet weights stay unchanged and are ``missing`` in the
    report: GST's temporal convolutions, TAM's weights over time, TPN's neck, and the classifiers.

    Raises:
        CheckpointError: the file is unreadable or not a ResNet of this depth.
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
            if ".conv2.spatial." in name and image.dim() == tensor.dim():
                image = image[: tensor.shape[0], : tensor.shape[1]]
            found[name] = image
    if trunk or any(found[name].shape != ours[name].shape for name in found):
        raise CheckpointError(f"checkpoint {path} is a ResNet of another depth than the model")
    require_finite(path, found)
    model.load_state_dict(found, strict=False)
    missing = tuple(name for name in ours if name not in found and not name.endswith(_OPTIONAL))
    return LoadReport(path, source, tuple(found), missing, (), ())


def inspect(path: str | os.PathLike, trust: bool = False) -> FileInfo:
    """Find out which model a checkpoint belongs to, from the names and shapes of its tensors.

    Args:
        path: a safetensors file, or a file written by ``torch.save``.
        trust: run the code that a ``torch.save`` file may contain.

    Raises:
        CheckpointError: the file is unreadable, of an unknown model, or holds ImageNet weights.
    """
    path = Path(path)
    weights = read_state_dict(path, trust)
    source = _source(path, weights)
    if not origins.readable(source):
        raise CheckpointError(f"checkpoint {path} holds an image ResNet, expected a video model")
    shape = _shapes(path, weights, source)
    name = _name(source, shape)
    num_classes = shape("fc.weight", 2)[0]
    if num_classes < 1:
        raise CheckpointError(f"checkpoint {path} has no classes, expected at least 1")
    options = {}
    if source in origins.MIXED_SHORTCUT:
        options["mixed_shortcut"] = origins.MIXED_SHORTCUT[source]
    return FileInfo(source, name, num_classes, options)


def export(model: nn.Module, origin: str, raw_classes: Sequence[str] | None = None) -> dict:
    """Return the content to ``torch.save`` for the code that a model comes from.

    Args:
        model: from :func:`taf_fast.models.build`, without adversarial batch norms.
        origin: ``"official"``, or ``"mmaction2"`` for TSM and TPN.
        raw_classes: the class names in the order that the file should have, if not alphabetical (see
            :func:`load`).

    Returns:
        a dict with ``state_dict`` and the other entries that this code expects.

    Raises:
        CheckpointError: there is no such code for this family, it would compute other logits from the
            weights, or the model has adversarial batch norms.
    """
    source = Source(model.family, origin)
    if origin not in ("official", "mmaction2") or not origins.readable(source):
        raise CheckpointError(f"a {model.family} model cannot be written for {origin!r}")
    if origins.MIXED_SHORTCUT.get(source, model.backbone.mixed_shortcut) != model.backbone.mixed_shortcut:
        does = "see" if origins.MIXED_SHORTCUT[source] else "do not see"
        raise CheckpointError(
            f"the shortcut convolutions of the {origin} {model.family} {does} shifted frames, unlike those "
            "of this model (mixed_shortcut): its logits would differ"
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
            f"checkpoint {path} holds no known model; its first tensors: {', '.join(list(weights)[:3])}"
        )
    return source


def _shapes(path: Path, weights: Mapping[str, Tensor], source: Source) -> Callable[[str, int], torch.Size]:
    """The function that returns the shape of the tensor with our name, of at least so many dimensions."""
    shapes = {origins.canonical(name): tensor.shape for name, tensor in weights.items()}

    def shape(name: str, dimensions: int) -> torch.Size:
        ending = origins.canonical(origins.rename(name, source))
        if ending not in shapes:
            raise CheckpointError(f"checkpoint {path} has no {ending}, expected in a {source.family} model")
        if len(shapes[ending]) < dimensions:
            raise CheckpointError(
                f"checkpoint {path}: {ending} is {list(shapes[ending])}, expected {dimensions} dimensions"
            )
        return shapes[ending]

    return shape


def _name(source: Source, shape: Callable[[str, int], torch.Size]) -> str:
    """The name that :func:`taf_fast.models.build` has for the model with tensors of these shapes."""
    # Only bottleneck blocks begin with a 1x1 convolution.
    depth = 50 if shape("backbone.layer1.0.conv1.weight", 4)[-1] == 1 else 18
    family = source.family
    if family == "gst" and shape("backbone.layer1.0.conv2.temporal.weight", 4)[1] == 64:
        family = "gst_large"
    return f"{family}_resnet{depth}"


def _require_same_model(path: Path, source: Source, weights: dict[str, Tensor], model: nn.Module) -> None:
    own = Source(str(model.family), "taf_fast")
    expected = _name(own, _shapes(path, model.state_dict(), own))
    if (found := _name(source, _shapes(path, weights, source))) != expected:
        raise CheckpointError(f"checkpoint {path} is a {found} file; the model is a {expected}")


def _require_no_problems(report: LoadReport, weights: dict[str, Tensor], model: nn.Module) -> None:
    if not report.problems:
        return
    _require_same_model(report.path, report.source, weights, model)
    classifier = origins.canonical(origins.rename("fc.weight", report.source))
    for name, tensor in weights.items():
        if origins.canonical(name) == classifier and tensor.dim() and len(tensor) != model.num_classes:
            raise ClassesError(
                f"checkpoint {report.path} has {len(tensor)} classes, expected {model.num_classes}"
            )
    shown = "; ".join(report.problems[:5])
    raise CheckpointError(
        f"checkpoint {report.path} does not fit the model ({len(report.problems)} problems): {shown}"
    )


def _alphabetical(raw_classes: Sequence[str], num_classes: int) -> list[int]:
    """Return the positions of the alphabetically sorted names in ``raw_classes``."""
    if len(set(raw_classes)) != num_classes or len(raw_classes) != num_classes:
        raise CheckpointError(
            f"{len(raw_classes)} class names ({len(set(raw_classes))} distinct) for a model of "
            f"{num_classes} classes"
        )
    return sorted(range(num_classes), key=lambda index: raw_classes[index])
