"""How clips are changed for training: temporal augmentation, and what the paper compares it with."""

from taf_fast.augment.advprop import AdvPropAugment
from taf_fast.augment.base import Augment
from taf_fast.augment.cross_entropy import CrossEntropyAugment
from taf_fast.augment.mixing import MIXINGS, Mixing
from taf_fast.augment.model_state import running_statistics_untouched
from taf_fast.augment.noise import NoiseAugment
from taf_fast.augment.pixel_gradient import CleanForward, Objective, ObjectiveValue
from taf_fast.augment.rows import ALL_ROWS, Rows
from taf_fast.augment.sign_attack import SignAttack
from taf_fast.augment.temporal import TemporalAugment

__all__ = [
    "ALL_ROWS",
    "MIXINGS",
    "AdvPropAugment",
    "Augment",
    "CleanForward",
    "CrossEntropyAugment",
    "Mixing",
    "NoiseAugment",
    "Objective",
    "ObjectiveValue",
    "Rows",
    "SignAttack",
    "TemporalAugment",
    "running_statistics_untouched",
]
