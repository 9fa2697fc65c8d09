"""Video classifiers by name."""

from functools import partial

from torch import nn

from taf_fast.models.tsm import tsm

_BUILDERS = {"tsm_resnet18": partial(tsm, 18), "tsm_resnet50": partial(tsm, 50)}

NAMES = tuple(_BUILDERS)


def build(name: str, num_classes: int, num_segments: int = 8, **options) -> nn.Module:
    """A classifier of clips [B,T,3,H,W] with random weights.

    The model has ``features`` (clips -> [B,T,C,h,w]), ``head`` (features -> logits
    [B,num_classes]) and the buffers ``mean`` and ``std`` [3] of the pixels in [0,1] it was made for.

    Args:
        name: one of ``taf_fast.models.NAMES``.
        num_classes: number of logits.
        num_segments: frames per clip, T.
        options: the family's own, such as ``dropout``.

    Raises:
        ValueError: unknown name.
    """
    if name not in _BUILDERS:
        raise ValueError(f"unknown model {name!r}, expected one of {', '.join(NAMES)}")
    return _BUILDERS[name](num_classes, num_segments, **options)
