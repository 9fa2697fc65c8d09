"""Video classifiers by name, and their checkpoints."""

import inspect as _inspect
from collections.abc import Callable
from functools import partial

from torch import nn

from taf_fast.errors import CheckpointError
from taf_fast.models.conversion import FileInfo, LoadReport, export, inspect, load, load_imagenet
from taf_fast.models.gst import gst
from taf_fast.models.tam import tam
from taf_fast.models.tpn import tpn
from taf_fast.models.tsm import tsm

__all__ = [
    "NAMES",
    "CheckpointError",
    "FileInfo",
    "LoadReport",
    "build",
    "export",
    "inspect",
    "load",
    "load_imagenet",
    "switches",
]

_FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "tsm": tsm,
    "gst": partial(gst, alpha=4, beta=2),
    "gst_large": partial(gst, alpha=4, beta=1),
    "tam": tam,
    "tpn": tpn,
}
_BUILDERS = {
    f"{family}_resnet{depth}": partial(make, depth)
    for family, make in _FAMILIES.items()
    for depth in (18, 50)
}

NAMES = tuple(_BUILDERS)


def switches(name: str) -> frozenset[str]:
    """The options of :func:`build` that are on or off for the model ``name``."""
    parameters = _inspect.signature(_BUILDERS[name]).parameters.values()
    return frozenset(parameter.name for parameter in parameters if isinstance(parameter.default, bool))


def build(name: str, num_classes: int, num_segments: int = 8, **options) -> nn.Module:
    """Build a classifier of clips [B,T,3,H,W] with random weights.

    The model has ``features`` (clips -> [B,T,C,h,w]), ``head`` (features -> logits [B,num_classes]; TPN's
    head also takes the stage before), the buffers ``mean`` and ``std`` [3] that normalise its pixels in
    [0,1], and ``parameter_groups``.

    Args:
        name: one of ``taf_fast.models.NAMES``.
        num_classes: number of logits, at least 1.
        num_segments: frames per clip, T, at least 1.
        options: ``dropout`` for every family; ``temporal_stride`` for TAM; ``mixed_shortcut`` for TSM and
            TPN.

    Raises:
        ValueError: the name is unknown, or num_classes or num_segments is below 1.
        TypeError: the family does not have an option.
    """
    if name not in _BUILDERS:
        raise ValueError(f"unknown model {name!r}, expected one of {', '.join(NAMES)}")
    return _BUILDERS[name](num_classes=num_classes, num_segments=num_segments, **options)
