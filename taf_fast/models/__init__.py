"""Video classifiers by name, and their checkpoints."""

from functools import partial

from torch import nn

from taf_fast.models.conversion import FileInfo, LoadReport, export, inspect, load, load_imagenet
from taf_fast.models.gst import gst
from taf_fast.models.pickles import CheckpointError
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
]

_FAMILIES = {
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


def build(name: str, num_classes: int, num_segments: int = 8, **options) -> nn.Module:
    """A classifier of clips [B,T,3,H,W] with random weights.

    The model has ``features`` (clips -> [B,T,C,h,w]), ``head`` (features -> logits
    [B,num_classes]; TPN's also takes the stage before them), the buffers ``mean`` and ``std`` [3] of
    the pixels in [0,1] it was made for, and ``parameter_groups``.

    Args:
        name: one of ``taf_fast.models.NAMES``.
        num_classes: number of logits.
        num_segments: frames per clip, T.
        options: ``dropout``; ``temporal_stride`` of TAM; ``mixed_shortcut`` of TSM and TPN.

    Raises:
        ValueError: unknown name.
        TypeError: an option the family does not have.
    """
    if name not in _BUILDERS:
        raise ValueError(f"unknown model {name!r}, expected one of {', '.join(NAMES)}")
    return _BUILDERS[name](num_classes=num_classes, num_segments=num_segments, **options)
