"""Every value of a fine-tuning run, checked before any work is done."""

import dataclasses
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

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
from taf_fast.augment.options import AMOUNT
from taf_fast.errors import RunError
from taf_fast.parsing import parse_yaml
from taf_fast.precision import PRECISIONS
from taf_fast.run.values import (
    AUTO,
    BELOW_ONE,
    FREE_ON_RESUME,
    UNIT,
    Scope,
    above,
    at_least,
    between,
    check,
    declaration,
    kinds,
    quoted,
    value,
    wrong,
)
from taf_fast.step import COMPOSITIONS

if TYPE_CHECKING:
    from taf_fast.data import TrainingView

#: Augmentations that add adversarial clips, which go through their own batch norms, to the clean ones.
ADVERSARIAL = ("ta", "ce", "noise", "advprop")
AUGMENTS = (*ADVERSARIAL, *MIXINGS, "none")

PIXELS = (UNIT[0], AMOUNT)
# The official projects train from ImageNet weights at 0.01 or more, and fine-tune at 0.0001.
LEAST_LR_FROM_SCRATCH = 1e-3

DATA = "Data"
MODEL = "Model"
TRAINING = "Training"
ATTACK = "Attack"
MACHINE = "Machine"
RUN = "Run"


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """The values of a run, as ``config.yaml`` in its folder keeps them; each field declares its own meaning.

    ``augment`` "ta" is :class:`taf_fast.TemporalAugment`; "ce", "noise" and "advprop" are
    :class:`taf_fast.CrossEntropyAugment`, :class:`taf_fast.NoiseAugment` and
    :class:`taf_fast.AdvPropAugment`; "mixup", "cutmix", "framemixup" and "cubemixup" are
    :class:`taf_fast.augment.Mixing`. Options of an augmentation that are not fields here keep its defaults.
    ``alpha`` and ``composition`` are those of :class:`taf_fast.TAFStep`; ``sampling``, ``crop``, ``flip``,
    ``swap`` and ``colour`` those of :class:`taf_fast.data.TrainingView`; ``decoder``, ``workers`` and
    ``threads`` those of :class:`taf_fast.data.ClipLoader`.

    Towards ``quarantine_limit`` each rank counts its own bad clips and those that the other ranks had found
    when the state was last saved.

    Paths may be given as text. The defaults are the paper's protocol for TSM on Something-Something.

    Raises:
        RunError: a value of the wrong type or out of its range, or values that exclude each other.
    """

    data: Path = value(
        help="Folder of the data set: Something-Something V1 or V2 or Diving48 as downloaded, "
        "list files of clips and labels, or train and val with a folder for each class.",
        panel=DATA,
        scope=Scope.INPUT,
        shown="that of --recipe, if it is the config.yaml of a run",
    )
    out: Path = value(
        help="Folder of the run.",
        panel=RUN,
        scope=Scope.NEUTRAL,
        shown="runs/RECIPE",
    )
    manifest: Path | None = value(
        None,
        help="Manifest file that taf-fast scan wrote.",
        panel=DATA,
        scope=Scope.NEUTRAL,
        shown="taf_fast_manifest.jsonl in the data folder, if it exists",
    )
    dataset: str | None = value(
        None,
        help="Format that the data must have: ssv1, ssv2, diving48, list or folders.",
        panel=DATA,
        option="",
        shown="any",
    )
    checkpoint: Path | None = value(
        None,
        help="Weights to start from: of finetune, of the official TSM, GST, TAM and TPN, or of MMAction2.",
        panel=MODEL,
        scope=Scope.INPUT,
        shown="none, train from scratch",
    )
    class_order: str | None = value(
        None,
        help="Order of the classes in a checkpoint that does not name them: alphabetical, or raw, that of "
        "Something-Something V1's labels file.",
        panel=MODEL,
        scope=Scope.INPUT,
        choices=("alphabetical", "raw"),
        shown="alphabetical; must be given for MMAction2's checkpoints of that data set",
    )
    imagenet: Path | None = value(
        None,
        help="torchvision's ResNet weights to start a new model from, instead of a checkpoint.",
        panel=MODEL,
        scope=Scope.INPUT,
    )
    new_head: bool = value(
        False,
        help="Take all but the classifier from the checkpoint; a new one is for the data set's classes.",
        panel=MODEL,
    )
    augment: str = value(
        "ta",
        help="Augmentation of the training clips: ta (TAF), none (plain fine-tuning), or one that the paper "
        "compares TA with: ce, noise, advprop, mixup, cutmix, framemixup, cubemixup.",
        panel=TRAINING,
        choices=AUGMENTS,
    )
    model: str = value(
        "tsm_resnet50",
        help="Model: tsm, gst, gst_large, tam or tpn, and its ResNet, such as tsm_resnet50.",
        panel=MODEL,
        choices=models.NAMES,
        shown="the recipe's or checkpoint's, or tsm_resnet50",
    )
    num_segments: int = value(
        8,
        help="Frames per clip, T.",
        panel=MODEL,
        rule=between(1, 1024),
        shown="the recipe's or checkpoint's, or 8",
    )
    size: int = value(
        224,
        help="Side of the square crops, in pixels.",
        panel=MODEL,
        rule=between(1, 4096),
        shown="the recipe's or checkpoint's, or 224",
    )
    epochs: int = value(
        15,
        help="Passes over the training clips; a resumed run may have more than before, unless the schedule "
        "is cosine.",
        panel=TRAINING,
        rule=at_least(1),
    )
    batch_size: int = value(
        64, help="Clips per step, of all GPUs together.", panel=TRAINING, rule=at_least(1)
    )
    lr: float = value(
        1e-4, help="Learning rate before its first decay.", panel=TRAINING, rule=above(0, 10**12)
    )
    schedule: str = value(
        "multistep",
        help="Decay of the learning rate: multistep, at lr_steps; cosine, to 0 at the end; or constant.",
        panel=TRAINING,
        choices=("multistep", "cosine", "constant"),
    )
    lr_steps: tuple[int, ...] = value(
        (10,),
        help="Epoch, counted from 0, from which the learning rate is a tenth of what it was; repeatable, for "
        "multistep.",
        panel=TRAINING,
        option="--lr-step",
    )
    warmup_epochs: int = value(
        0,
        help="Epochs in which the learning rate rises from near 0, step by step.",
        panel=TRAINING,
        rule=at_least(0),
    )
    optimizer: str = value(
        "sgd",
        help="Optimiser: sgd, or adamw with betas of 0.9 and 0.999.",
        panel=TRAINING,
        choices=("sgd", "adamw"),
    )
    momentum: float = value(0.9, help="Momentum of SGD.", panel=TRAINING, rule=BELOW_ONE)
    nesterov: bool = value(False, help="Nesterov's momentum, for SGD.", panel=TRAINING, option="")
    weight_decay: float = value(
        5e-4,
        help="Weight decay; AdamW's is decoupled from the gradient.",
        panel=TRAINING,
        rule=between(0, 10**12),
    )
    clip_grad: float | None = value(
        20.0,
        help="Limit of the gradient's L2 norm over all parameters; a recipe's null is no limit.",
        panel=TRAINING,
        rule=above(0),
    )
    fc_lr5: bool = value(
        False,
        help="Train the classifier at 5 times the learning rate: for a new classifier on a trained trunk.",
        panel=TRAINING,
    )
    new_head_lr_factor: float = value(
        5.0,
        help="Factor of the learning rate of a new classifier, for new_head.",
        panel=TRAINING,
        rule=above(0, 10**6),
    )
    ema: float | None = value(
        None,
        help="Decay per step of an exponential moving average of the weights and batch statistics, which is "
        "validated and saved in their place.",
        panel=TRAINING,
        rule=BELOW_ONE,
        shown="none, the weights themselves",
    )
    keep_best: str | None = value(
        None,
        help="Also keep the weights of the epoch with the best validation top1, top5 or loss.",
        panel=TRAINING,
        choices=("top1", "top5", "loss"),
    )
    patience: int | None = value(
        None,
        help="End the run after so many epochs in a row without a better score, that of keep_best.",
        panel=TRAINING,
        rule=at_least(1),
    )
    dropout: float | None = value(
        None,
        help="Dropout probability before the classifier.",
        panel=MODEL,
        rule=BELOW_ONE,
        shown="the recipe's or the model's own",
    )
    sampling: str = value(
        "segments",
        help="How frames are drawn: segments, one at random in each segment (TSM, GST); shared, the same "
        "place in every segment (TAM); interleaved, as segments, but with TPN's two clips in evaluation.",
        panel=DATA,
        choices=("segments", "shared", "interleaved"),
        option="",
    )
    crop: str = value(
        "multi_scale",
        help="How training crops are drawn: multi_scale, or random_resized (TPN).",
        panel=DATA,
        choices=("multi_scale", "random_resized"),
        option="",
    )
    flip: bool = value(False, help="Mirror half of the training clips.", panel=DATA)
    swap: tuple[tuple[int, int], ...] = value(
        (),
        help="Pairs of classes, such as left and right, that a mirrored clip exchanges; needs flip.",
        panel=DATA,
        option="",
    )
    colour: bool = value(
        False, help="TPN's photometric augmentation of the training clips.", panel=DATA, option=""
    )
    alpha: float = value(
        0.7,
        help="Weight of the clean loss, from 0 to 1; the rest is the adversarial loss's.",
        panel=ATTACK,
        rule=UNIT,
    )
    composition: str = value(
        "wrong",
        help="Clips to attack, by their clean prediction: wrong, correct or all.",
        panel=ATTACK,
        choices=COMPOSITIONS,
    )
    epsilon: float = value(
        64 / 255,
        help="Radius of the L-infinity ball, in pixel units of [0, 1].",
        panel=ATTACK,
        rule=PIXELS,
    )
    step_size: float = value(
        32 / 255,
        help="Length of an attack step, in pixel units of [0, 1]; for noise, its standard deviation.",
        panel=ATTACK,
        rule=PIXELS,
    )
    steps: int = value(1, help="Attack steps, K.", panel=ATTACK, rule=at_least(1))
    num_frames: int | None = value(
        None,
        help="Number N of least attended frames to raise the attention to.",
        panel=ATTACK,
        shown="the recipe's, or all T",
    )
    gradient: str = value(
        "loss",
        help="Scalar whose gradient weights the CAM: loss (Eq. 2), or logit (Grad-CAM as published; opposite "
        "sign).",
        panel=ATTACK,
        choices=("loss", "logit"),
    )
    denominator: str = value(
        "max",
        help="Divisor that normalises the CAM in Eq. 3: max, as printed, or range, max - min.",
        panel=ATTACK,
        choices=("max", "range"),
    )
    attack_bn: str = value(
        "frozen",
        help="Batch-norm statistics in the attack: frozen, those of the clean forward, or batch, those of "
        "the attacked clips.",
        panel=ATTACK,
        choices=("frozen", "batch"),
    )
    seed: int = value(
        0,
        help="Seed of weights, shuffling, crops and attacks.",
        panel=RUN,
        scope=Scope.SEED,
        rule=(lambda value: 0 <= value < 2**63, "at least 0 and below 2^63"),
    )
    device: str = value(
        "cpu",
        help="PyTorch device: cpu, cuda, cuda:1, ...",
        panel=MACHINE,
        scope=Scope.MACHINE,
        rule=(
            lambda value: re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", value) is not None,
            "cpu, cuda or cuda:N",
        ),
        shown="cuda if there is one, or cpu",
    )
    compile: bool = value(
        False,
        help="Use torch.compile.",
        panel=MACHINE,
        scope=Scope.MACHINE,
        shown="on a GPU only",
    )
    precision: str = value(
        "float32",
        help="Precision of training steps: float32 or bfloat16. Evaluation is in float32.",
        panel=TRAINING,
        choices=PRECISIONS,
        shown="bfloat16 on a GPU that computes in it, or float32",
    )
    deterministic: bool = value(
        False,
        help="The same bits in each run on the same machine, by slower algorithms on a GPU.",
        panel=MACHINE,
        scope=Scope.MACHINE,
    )
    accumulate: int = value(
        1,
        help="Parts in which each process computes its clips of a step, one after another: less memory for "
        "the same batch size; batch norms see the clips of a part.",
        panel=MACHINE,
        scope=Scope.SHARING,
        rule=at_least(1),
    )
    exchange: str = value(
        "float32",
        help="Precision in which processes exchange gradients: float32, or bfloat16 for half the traffic.",
        panel=MACHINE,
        scope=Scope.SHARING,
        choices=PRECISIONS,
    )
    decoder: str = value(
        "pyav",
        help="Video decoder: pyav, dali or, on a GPU, mixed; auto takes the fastest for these clips.",
        panel=MACHINE,
        scope=Scope.MACHINE,
        choices=("pyav", "dali", "mixed", AUTO),
        shown="auto on a GPU, or pyav",
    )
    workers: int | None = value(
        None,
        help="Processes that decode clips, for each process of the run; dali and mixed take as many threads.",
        panel=MACHINE,
        scope=Scope.NEUTRAL,
        rule=between(1, 1024),
        shown="the CPUs that the process may use; none for fewer than 256 clips",
    )
    threads: int | None = value(
        None,
        help="Threads of the process itself that decode clips, instead of --workers.",
        panel=MACHINE,
        scope=Scope.NEUTRAL,
        rule=between(1, 1024),
        shown="none",
    )
    checkpoint_every: int = value(
        200, help="Steps between two saved states.", panel=RUN, scope=Scope.NEUTRAL, rule=at_least(1)
    )
    tensorboard: bool | None = value(
        None,
        help="Write an event file for TensorBoard into the folder of the run.",
        panel=RUN,
        scope=Scope.NEUTRAL,
        shown="on if tensorboard is installed",
    )
    wandb: bool = value(
        False,
        help="Log to Weights & Biases, too; needs its package wandb.",
        panel=RUN,
        scope=Scope.NEUTRAL,
    )
    log_every: int = value(
        1,
        help="Steps from one point of TensorBoard and W&B to the next; metrics.jsonl has every step.",
        panel=RUN,
        scope=Scope.NEUTRAL,
        rule=at_least(1),
    )
    quarantine_limit: float = value(
        0.1,
        help="Fraction of unreadable clips, from 0 to 1, above which the run stops.",
        panel=DATA,
        scope=Scope.NEUTRAL,
        rule=(UNIT[0], "a fraction between 0 and 1"),
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            given, hint = getattr(self, field.name), _HINTS[field.name]
            if isinstance(given, str) and Path in kinds(hint):
                given = Path(given)
                object.__setattr__(self, field.name, given)
            check(field.name, given, hint, declaration(field))
        if self.imagenet is not None and self.checkpoint is not None:
            raise wrong("imagenet", "none where there is a checkpoint", self.imagenet)
        if self.new_head and self.checkpoint is None:
            raise wrong("new_head", "off where there is no checkpoint", self.new_head)
        if self.new_head and self.class_order is not None:
            raise wrong("class_order", "none with new_head, which takes no class from it", self.class_order)
        if self.new_head and self.fc_lr5:
            raise wrong("fc_lr5", "off with new_head, whose factor is new_head_lr_factor", self.fc_lr5)
        if self.warmup_epochs >= self.epochs:
            raise wrong("warmup_epochs", f"below epochs = {self.epochs}", self.warmup_epochs)
        if self.schedule == "multistep" and min(self.lr_steps, default=self.epochs) < self.warmup_epochs:
            raise wrong("lr_steps", f"at least warmup_epochs = {self.warmup_epochs}", self.lr_steps)
        if self.patience is not None and self.keep_best is None:
            raise wrong("patience", "none without keep_best, which names the score", self.patience)
        if self.decoder == "mixed" and not self.device.startswith("cuda"):
            raise wrong("decoder", f"pyav or dali on device {self.device}", self.decoder)
        if self.workers is not None and self.threads is not None:
            raise wrong("workers", f"none with threads = {self.threads}", self.workers)
        if self.num_frames is not None and self.num_frames > self.num_segments:
            raise wrong("num_frames", f"at most num_segments = {self.num_segments}", self.num_frames)
        try:
            self.attack()
            self.view()
        except ValueError as error:
            raise RunError(str(error)) from None

    def attack(self) -> Augment | None:
        """The augmentation that makes adversarial clips, if ``augment`` is one that does."""
        if self.augment == "ta":
            return TemporalAugment(
                epsilon=self.epsilon,
                step_size=self.step_size,
                steps=self.steps,
                num_frames=self.num_frames,
                gradient=self.gradient,
                denominator=self.denominator,
                attack_bn=self.attack_bn,
            )
        if self.augment == "ce":
            return CrossEntropyAugment(
                epsilon=self.epsilon, step_size=self.step_size, steps=self.steps, attack_bn=self.attack_bn
            )
        if self.augment == "noise":
            return NoiseAugment(epsilon=self.epsilon, step_size=self.step_size)
        if self.augment == "advprop":
            return AdvPropAugment(epsilon=self.epsilon, step_size=self.step_size, steps=self.steps)
        return None

    def mixing(self) -> Mixing | None:
        """The augmentation that mixes all clips of a batch, if ``augment`` is one that does."""
        return MIXINGS.get(self.augment)

    def view(self) -> "TrainingView":
        """How training clips are sampled, cropped and mirrored."""
        # Not at the top: the decoders are slow to import, and the command line's help does without.
        from taf_fast.data import TrainingView

        return TrainingView(self.sampling, self.crop, self.flip, self.swap, self.colour)

    def doubt(self) -> str | None:
        """What is probably not meant, as a warning to print; None if there is nothing."""
        if self.checkpoint is None and self.optimizer == "sgd" and self.lr < LEAST_LR_FROM_SCRATCH:
            return (
                f"warning: lr {self.lr:g} is for fine-tuning, and there is no checkpoint; training from "
                "scratch usually takes about 0.01"
            )
        return None

    def plain(self) -> dict[str, Any]:
        """The values as YAML and JSON have them."""
        return _plain(dataclasses.asdict(self))

    def write(self, path: Path) -> None:
        """Write the values as YAML, paths as absolute ones."""
        path.write_text(yaml.safe_dump(self.plain(), sort_keys=False), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "FinetuneConfig":
        """The configuration that :meth:`write` wrote to ``path``."""
        return cls(**tuples(parse_yaml(path.read_text(encoding="utf-8"))))

    @property
    def epochs_may_grow(self) -> bool:
        """Whether the run is, up to any of its epochs, that of a run of more epochs."""
        return self.schedule != "cosine"

    def require_same_run(self, earlier: "FinetuneConfig", resume: bool = False) -> None:
        """Raise RunError naming the values whose change would change the result of a resumed run.

        ``resume``: there may be more epochs, and the folder of the data set may be another; the caller sees
        whether the data are the same.
        """
        free = names_of(*FREE_ON_RESUME) | ({"data"} if resume else set())
        if resume and self.epochs > earlier.epochs:
            if not self.epochs_may_grow:
                raise RunError(
                    f"epochs must be {earlier.epochs}, as the run has, got {self.epochs}: with schedule "
                    f"{self.schedule}, the learning rate of every step depends on them"
                )
            free |= {"epochs"}
        changed = [
            f"{name}: {quoted(getattr(earlier, name))} there, {quoted(getattr(self, name))} now"
            for name in FIELDS
            if name not in free and absolute(getattr(earlier, name)) != absolute(getattr(self, name))
        ]
        if changed:
            raise RunError("cannot resume with other options than the run's: " + "; ".join(changed))


FIELDS = {field.name: field for field in dataclasses.fields(FinetuneConfig)}
_HINTS = get_type_hints(FinetuneConfig, localns={"TrainingView": Any})


def hint_of(name: str) -> Any:
    """The type of a value of :class:`FinetuneConfig`."""
    return _HINTS[name]


def names_of(*scopes: Scope) -> frozenset[str]:
    """The values of :class:`FinetuneConfig` that belong to one of ``scopes``."""
    return frozenset(name for name, field in FIELDS.items() if declaration(field).scope in scopes)


def _plain(value: Any) -> Any:
    """Tuples as lists and paths as text, which YAML has; a path is one from any working directory."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(absolute(value)) if isinstance(value, Path) else value


def absolute(value: Any) -> Any:
    """A path as it is from any working directory; what is no path, as it is."""
    return Path(os.path.abspath(value)) if isinstance(value, Path) else value


def tuples(value: Any) -> Any:
    """YAML's lists as the tuples that a configuration has."""
    if isinstance(value, dict):
        return {key: tuples(item) for key, item in value.items()}
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value
