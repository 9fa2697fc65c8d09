"""Temporal Adversarial Fine-tuning (TAF, IJCAI 2023) for video models."""

from taf_fast import models, ops
from taf_fast.adapt import adapt
from taf_fast.augment import AdvPropAugment, CrossEntropyAugment, NoiseAugment, TemporalAugment
from taf_fast.dual_batch_norm import add_adversarial_bn, adversarial_path, strip_adversarial_bn
from taf_fast.memory_format import channels_last
from taf_fast.step import PlainStep, TAFStep

__version__ = "0.1.0"

__all__ = [
    "AdvPropAugment",
    "CrossEntropyAugment",
    "NoiseAugment",
    "PlainStep",
    "TAFStep",
    "TemporalAugment",
    "adapt",
    "add_adversarial_bn",
    "adversarial_path",
    "channels_last",
    "models",
    "ops",
    "strip_adversarial_bn",
]
