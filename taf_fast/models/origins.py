"""The names and shapes that other projects give to the same tensors in their checkpoints.

The tables only translate from our names to theirs. Reading a file inverts them for the names of the given
model.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor


class Source(NamedTuple):
    """The origin of a file: the model family (tsm, gst, tam, tpn, or resnet for ImageNet weights) and the
    code that wrote the file (taf_fast, official, mmaction2, tpn for TPN's own TSM, torchvision)."""

    family: str
    origin: str


_TSM = [(r"^backbone\.(layer\d\.\d+\.conv1)\.", r"base_model.\1.net."), (r"^backbone\.", "base_model.")]
_GST = [(r"\.conv2\.spatial\.", ".conv2."), (r"\.conv2\.temporal\.", ".Tconv.")]
_TAM = [
    (r"\.temporal\.previous$", ".tam.prev_se.fc1.weight"),
    (r"\.temporal\.current$", ".tam.curr_se.fc1.weight"),
    (r"\.temporal\.next$", ".tam.next_se.fc1.weight"),
    (r"^backbone\.", ""),
]
_TPN = [
    (r"^fc\.", "cls_head.fc_cls."),
    (r"^neck\.spatial_modulation\.0\.", "necks.spatial_modulation.spatial_modulation.0.0.conv."),
    (r"^neck\.spatial_modulation\.1\.", "necks.spatial_modulation.spatial_modulation.0.0.bn."),
    (r"^neck\.temporal_modulation\.(\d)\.", r"necks.temporal_modulation_ops.\1.conv."),
    (r"^neck\.bottom_up\.", "necks.downsampling_ops.0.conv."),
    (r"^neck\.top_down_fusion\.", "necks.level_fusion_op2."),
    (r"^neck\.bottom_up_fusion\.", "necks.level_fusion_op."),
    (r"\.levels\.(\d)\.0\.", r".ops.\1.conv."),
    (r"\.levels\.(\d)\.1\.", r".ops.\1.norm."),
    (r"\.fusion\.", ".fusion_conv."),
    (r"^neck\.pyramid_fusion\.", "necks.pyramid_fusion_op."),
    (r"^auxiliary\.conv\.0\.", "necks.aux_head.convs.conv."),
    (r"^auxiliary\.conv\.1\.", "necks.aux_head.convs.bn."),
    (r"^auxiliary\.", "necks.aux_head."),
]
# MMAction2 wraps a convolution and its batch norm in one module, and the shift wraps the convolution.
_MMACTION2_TRUNK = [
    (r"^(backbone\.layer\d\.\d+\.conv1)\.", r"\1.conv.net."),
    (r"^(backbone\..*conv\d)\.(?=weight)", r"\1.conv."),
    (r"^(backbone\..*)\bbn(\d)\.", r"\1conv\2.bn."),
    (r"^(backbone\..*downsample)\.0\.", r"\1.conv."),
    (r"^(backbone\..*downsample)\.1\.", r"\1.bn."),
]
_MMACTION2_NECK = [
    (r"^necks\.", "neck."),
    (r"(temporal_modulation_ops\.\d\.conv)\.", r"\1.conv."),
    (r"downsampling_ops\.0\.conv\.", "downsample_ops.0.conv.conv."),
    (r"level_fusion_op2\.", "level_fusion_1."),
    (r"level_fusion_op\.", "level_fusion_2."),
    (r"\.ops\.(\d)\.conv\.", r".downsamples.\1.conv.conv."),
    (r"\.ops\.(\d)\.norm\.", r".downsamples.\1.conv.bn."),
    (r"(fusion_conv)\.0\.", r"\1.conv."),
    (r"(fusion_conv)\.1\.", r"\1.bn."),
    (r"pyramid_fusion_op\.0\.", "pyramid_fusion.conv."),
    (r"pyramid_fusion_op\.1\.", "pyramid_fusion.bn."),
    (r"aux_head\.convs\.", "aux_head.conv."),
]
_CLS_HEAD = [(r"^fc\.", "cls_head.fc_cls.")]
_NEW_FC = [(r"^fc\.", "new_fc.")]

_RENAME = {
    Source("tsm", "official"): [*_TSM, *_NEW_FC, (r"^", "module.")],
    Source("tsm", "tpn"): _CLS_HEAD,
    Source("tsm", "mmaction2"): [*_MMACTION2_TRUNK, *_CLS_HEAD],
    Source("gst", "official"): [*_GST, (r"^backbone\.", "base_model."), *_NEW_FC],
    Source("tam", "official"): _TAM,
    Source("tpn", "official"): _TPN,
    Source("tpn", "mmaction2"): [*_MMACTION2_TRUNK, *_TPN, *_MMACTION2_NECK],
}

#: Whether the convolution on the shortcut sees shifted frames, for families in which both kinds exist.
MIXED_SHORTCUT = {
    Source("tsm", "official"): False,
    Source("tsm", "mmaction2"): False,
    Source("tsm", "tpn"): True,
    Source("tpn", "official"): True,
    Source("tpn", "mmaction2"): False,
}

# Convolutions that are 2D here and 3D with a temporal extent of 1 in the official code.
_3D = {"gst": r".", "tpn": r"^(neck\.spatial_modulation|auxiliary\.conv)\.0\."}


def readable(source: Source) -> bool:
    """Whether files of ``source`` can be translated."""
    return source.origin == "taf_fast" or source in _RENAME


def rename(name: str, source: Source) -> str:
    """Translate our name of a tensor to its name in a file of ``source``."""
    for pattern, replacement in _RENAME.get(source, ()):
        name = re.sub(pattern, replacement, name)
    return name


def reshape(name: str, tensor: Tensor, source: Source) -> Tensor:
    """View our tensor called ``name`` in the shape that it has in a file of ``source``."""
    if source.origin == "taf_fast":
        return tensor
    if source.family == "tam" and ".temporal." in name:
        return tensor.unsqueeze(-1)
    if tensor.dim() == 4 and re.search(_3D.get(source.family, r"$^"), name):
        return tensor.unsqueeze(2)
    return tensor


def canonical(name: str) -> str:
    """Remove the parts of a name that vary between files of one project.

    These are the prefixes of DataParallel and torch.compile, the wrapper around a shifted convolution, and
    the two places of TSM's classifier.
    """
    name = re.sub(r"^(module\.|_orig_mod\.)+", "", name).replace(".net.", ".")
    return re.sub(r"^base_model\.fc\.", "new_fc.", name)


def identify(names: Iterable[str]) -> Source | None:
    """Find the origin of the tensors called ``names``; None if it is unknown."""
    names = {canonical(name) for name in names}

    def has(pattern: str) -> bool:
        return any(re.search(pattern, name) for name in names)

    signs = [
        (r"^necks\.", Source("tpn", "official")),
        (r"^neck\.level_fusion_1\.", Source("tpn", "mmaction2")),
        (r"^backbone\.conv1\.conv\.weight$", Source("tsm", "mmaction2")),
        (r"^base_model\..*\.Tconv\.", Source("gst", "official")),
        (r"^base_model\.layer", Source("tsm", "official")),
        (r"^layer.*\.tam\.prev_se\.", Source("tam", "official")),
        (r"^neck\.pyramid_fusion\.", Source("tpn", "taf_fast")),
        (r"^backbone\..*\.conv2\.spatial\.", Source("gst", "taf_fast")),
        (r"^backbone\..*\.temporal\.previous$", Source("tam", "taf_fast")),
        (r"^cls_head\.fc_cls\.", Source("tsm", "tpn")),
        (r"^backbone\.layer", Source("tsm", "taf_fast")),
        (r"^layer1\.0\.conv1\.weight$", Source("resnet", "torchvision")),
    ]
    return next((source for pattern, source in signs if has(pattern)), None)
