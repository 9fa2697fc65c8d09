"""Every choice of a fine-tuning run, checked before any work is done."""

import dataclasses
from pathlib import Path
from types import NoneType, UnionType
from typing import get_args, get_origin, get_type_hints

import yaml

from taf_fast import models
from taf_fast.augment import (
    MIXINGS,
    AdvPropAugment,
    Augment,
    CrossEntropyAugment,
    Mixing,
    NoiseAugment,
    TemporalAugment,
)
from taf_fast.data import DECODERS, TrainingView
from taf_fast.precision import PRECISIONS
from taf_fast.step import COMPOSITIONS


class RunError(ValueError):
    """Something the user gave cannot work; the message names it and what was expected."""


#: Augmentations whose clips go through adversarial batch norms, beside the clean ones.
ADVERSARIAL = ("ta", "ce", "noise", "advprop")
AUGMENTS = (*ADVERSARIAL, *MIXINGS, "none")

# What ``augment`` was called before there were others.
METHODS = {"taf": "ta", "plain": "none"}

CLASS_ORDERS = ("alphabetical", "raw")

# What may differ between a run and its resumption without changing what is computed.
_FREE = {"out", "manifest", "threads", "checkpoint_every", "quarantine_limit"}


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """A run as ``config.yaml`` in its folder keeps it.

    ``augment`` is what happens to the clips: "ta" is :class:`taf_fast.TemporalAugment`; "ce", "noise" and
    "advprop" are :class:`taf_fast.CrossEntropyAugment`, :class:`taf_fast.NoiseAugment` and
    :class:`taf_fast.AdvPropAugment` in its place; "mixup", "cutmix", "framemixup" and "cubemixup" are
    :class:`taf_fast.augment.Mixing`, of all clips; with "none" they are trained on as they are.
    Epsilon and step size are in pixels of range [0,1]. Of an augmentation's options those that are not named
    here are its defaults; alpha and composition are those of :class:`taf_fast.TAFStep`,
    sampling, crop, flip, swap and colour those of :class:`taf_fast.data.TrainingView`.
    ``manifest`` is a file of ``taf-fast scan``; None for the one in the data's folder, if there is one.
    ``dataset`` is the format the data must be in; None for whichever they are in. ``class_order`` is the
    checkpoint's: "alphabetical" as here, or "raw" as in the labels file of Something-Something V1.
    ``imagenet`` is a file of torchvision's ResNet weights to begin a new model with, instead of a checkpoint.
    ``batch_size`` is that of a step, which ranks divide among them. Of the clips that ``quarantine_limit``
    allows to be bad, a rank counts its own and those that the others had met at the last saved state.
    ``dropout`` None is the model family's. ``precision`` is that of training steps;
    evaluation is in float32. ``decoder`` is that of :class:`taf_fast.data.ClipLoader`.
    Defaults: the paper's protocol for TSM on Something-Something.
    """

    data: str
    out: str
    manifest: str | None = None
    dataset: str | None = None
    checkpoint: str | None = None
    class_order: str | None = None
    imagenet: str | None = None
    augment: str = "ta"
    model: str = "tsm_resnet50"
    num_segments: int = 8
    size: int = 224
    epochs: int = 15
    batch_size: int = 64
    lr: float = 1e-4
    lr_steps: tuple[int, ...] = (10,)
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    clip_grad: float | None = 20.0
    fc_lr5: bool = False
    dropout: float | None = None
    sampling: str = "segments"
    crop: str = "multi_scale"
    flip: bool = False
    swap: tuple[tuple[int, int], ...] = ()
    colour: bool = False
    alpha: float = 0.7
    composition: str = "wrong"
    epsilon: float = 64 / 255
    step_size: float = 32 / 255
    steps: int = 1
    num_frames: int | None = None
    gradient: str = "loss"
    denominator: str = "max"
    attack_bn: str = "frozen"
    seed: int = 0
    device: str = "cpu"
    compile: bool = False
    precision: str = "float32"
    decoder: str = "pyav"
    threads: int = 2
    checkpoint_every: int = 200
    quarantine_limit: float = 0.1

    def __post_init__(self):
        for name, hint in get_type_hints(type(self)).items():
            self._check_type(name, hint)

        def require(condition: bool, name: str, expected: str) -> None:
            if not condition:
                raise RunError(f"{name} must be {expected}, got {getattr(self, name)!r}")

        require(self.augment in AUGMENTS, "augment", f"one of {', '.join(AUGMENTS)}")
        require(
            self.imagenet is None or self.checkpoint is None, "imagenet", "none where there is a checkpoint"
        )
        require(self.model in models.NAMES, "model", f"one of {', '.join(models.NAMES)}")
        for name in ("num_segments", "size", "batch_size", "epochs", "threads", "checkpoint_every"):
            require(getattr(self, name) >= 1, name, "at least 1")
        require(self.class_order in (None, *CLASS_ORDERS), "class_order", f"one of {', '.join(CLASS_ORDERS)}")
        require(self.lr > 0, "lr", "above 0")
        require(self.clip_grad is None or self.clip_grad > 0, "clip_grad", "above 0, or none")
        require(0 <= self.momentum < 1, "momentum", "in [0,1)")
        require(self.weight_decay >= 0, "weight_decay", "at least 0")
        require(self.dropout is None or 0 <= self.dropout < 1, "dropout", "in [0,1), or none")
        require(0 <= self.alpha <= 1, "alpha", "between 0 and 1")
        require(self.composition in COMPOSITIONS, "composition", f"one of {', '.join(COMPOSITIONS)}")
        require(self.precision in PRECISIONS, "precision", f"one of {', '.join(PRECISIONS)}")
        require(self.decoder in DECODERS, "decoder", f"one of {', '.join(DECODERS)}")
        on_gpu = self.device.startswith("cuda")
        require(self.decoder != "mixed" or on_gpu, "decoder", f"pyav or dali on device {self.device}")
        require(0 <= self.quarantine_limit <= 1, "quarantine_limit", "a fraction between 0 and 1")
        require(
            self.num_frames is None or self.num_frames <= self.num_segments,
            "num_frames",
            f"at most num_segments = {self.num_segments}",
        )
        try:
            self.attack()
            self.view()
        except ValueError as error:
            raise RunError(str(error)) from None

    def _check_type(self, name: str, hint) -> None:
        value = getattr(self, name)
        allowed = [
            get_origin(kind) or kind for kind in (get_args(hint) if isinstance(hint, UnionType) else (hint,))
        ]
        # 1 will do for a number, but True will not.
        fits = type(value) in allowed or (float in allowed and type(value) is int)
        if not fits:
            names = " or ".join("none" if kind is NoneType else kind.__name__ for kind in allowed)
            hint = " (YAML takes 1e-4 for text: write 1.0e-4)" if isinstance(value, str) else ""
            raise RunError(f"{name} must be {names}, got {value!r}{hint if float in allowed else ''}")

    def attack(self) -> Augment | None:
        """What makes the adversarial clips, if there are any."""
        strength = dict(epsilon=self.epsilon, step_size=self.step_size)
        if self.augment == "ta":
            return TemporalAugment(
                **strength,
                steps=self.steps,
                num_frames=self.num_frames,
                gradient=self.gradient,
                denominator=self.denominator,
                attack_bn=self.attack_bn,
            )
        if self.augment == "ce":
            return CrossEntropyAugment(**strength, steps=self.steps, attack_bn=self.attack_bn)
        if self.augment == "noise":
            return NoiseAugment(**strength)
        if self.augment == "advprop":
            return AdvPropAugment(**strength, steps=self.steps)
        return None

    def mixing(self) -> Mixing | None:
        return MIXINGS.get(self.augment)

    def view(self) -> TrainingView:
        return TrainingView(self.sampling, self.crop, self.flip, self.swap, self.colour)

    def learning_rate(self, epoch: int) -> float:
        """The step schedule: a tenth after each of ``lr_steps`` epochs."""
        return self.lr * 0.1 ** sum(epoch >= step for step in self.lr_steps)

    def write(self, path: Path) -> None:
        path.write_text(yaml.safe_dump(_lists(dataclasses.asdict(self)), sort_keys=False), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "FinetuneConfig":
        values = tuples(yaml.safe_load(path.read_text(encoding="utf-8")))
        if "method" in values:
            values["augment"] = METHODS[values.pop("method")]
        return cls(**values)

    def require_same_run(self, earlier: "FinetuneConfig") -> None:
        """Raise RunError naming what differs in a way that would change the result of a resumed run."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in _FREE]
        changed = [
            f"{name}: {getattr(earlier, name)!r} there, {getattr(self, name)!r} now"
            for name in names
            if getattr(earlier, name) != getattr(self, name)
        ]
        if changed:
            raise RunError("cannot resume with other options than the run's: " + "; ".join(changed))


def _lists(value):
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, tuple) else value


def tuples(value):
    """YAML's lists as the tuples a config has."""
    if isinstance(value, dict):
        return {key: tuples(item) for key, item in value.items()}
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value
