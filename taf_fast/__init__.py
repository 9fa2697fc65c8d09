"""Temporal Adversarial Fine-tuning (TAF, IJCAI 2023) for video models."""

import importlib
from typing import TYPE_CHECKING

from taf_fast import models, ops
from taf_fast.augment import (
    AdvPropAugment,
    CrossEntropyAugment,
    NoiseAugment,
    SignAttack,
    TemporalAugment,
    running_statistics_untouched,
)
from taf_fast.models.adapted import adapt
from taf_fast.models.dual_batch_norm import add_adversarial_bn, adversarial_path, strip_adversarial_bn
from taf_fast.models.memory_format import channels_last
from taf_fast.step import PlainStep, TAFStep

if TYPE_CHECKING:
    from taf_fast.run.evaluate import evaluate
    from taf_fast.run.export import export
    from taf_fast.run.predict import predict

__version__ = "0.1.0"

__all__ = [
    "AdvPropAugment",
    "CrossEntropyAugment",
    "NoiseAugment",
    "PlainStep",
    "SignAttack",
    "TAFStep",
    "TemporalAugment",
    "adapt",
    "add_adversarial_bn",
    "adversarial_path",
    "channels_last",
    "evaluate",
    "export",
    "models",
    "ops",
    "predict",
    "running_statistics_untouched",
    "strip_adversarial_bn",
]


def __getattr__(name: str):
    # The decoders are slow to import, and training with another loader does without.
    if name in ("evaluate", "export", "predict"):
        return getattr(importlib.import_module(f"taf_fast.run.{name}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
