"""How clips are changed for training: temporal augmentation, and what the paper compares it with."""

from .advprop import AdvPropAugment
from .base import Augment, CleanForward
from .cross_entropy import CrossEntropyAugment
from .mixing import MIXINGS, Mixing
from .noise import NoiseAugment
from .temporal import TemporalAugment

__all__ = [
    "MIXINGS",
    "AdvPropAugment",
    "Augment",
    "CleanForward",
    "CrossEntropyAugment",
    "Mixing",
    "NoiseAugment",
    "TemporalAugment",
]
