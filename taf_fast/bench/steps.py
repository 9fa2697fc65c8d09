"""Compare training steps of a model: plain, naive, and this package's at given shares of attacked clips."""

import dataclasses
from collections.abc import Iterable
from statistics import median

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from taf_fast import models
from taf_fast.augment import TemporalAugment
from taf_fast.bench.measure import interleaved_seconds, matrix_flops, operations_by_time, peak_bytes
from taf_fast.bench.naive import NaiveStep
from taf_fast.models.dual_batch_norm import add_adversarial_bn
from taf_fast.models.memory_format import channels_last
from taf_fast.precision import autocast
from taf_fast.step import Composition, PlainStep, TAFStep

CLASSES = 174
#: In order: the step that fine-tuning uses; the step with one backward, for other trainers; the step with the
#: attack's gradient through the batch statistics; the literal implementation, in eager mode and compiled.
VARIANTS = ("taf_fast", "one backward", "through batch statistics", "naive", "naive, compiled")


def first_clips(attacked: int) -> Composition:
    """The composition that attacks the first clips of every batch, however the model classifies them."""
    return lambda logits, labels: torch.arange(len(labels), device=labels.device) < attacked


@dataclasses.dataclass(frozen=True)
class Setting:
    """How every step runs.

    ``compile`` applies to this package's steps, including the plain one; ``precision`` is one of
    :data:`taf_fast.precision.PRECISIONS`; ``channels_last`` is the memory format of clips and weights.
    """

    device: torch.device
    compile: bool = False
    precision: str = "float32"
    channels_last: bool = True

    def describe(self) -> str:
        names = {"channels_last": self.channels_last, "compiled": self.compile}
        return ", ".join([self.precision, *(name for name, on in names.items() if on)])


@dataclasses.dataclass(frozen=True)
class StepCost:
    """The measured cost of a step that attacks a ``share`` of the clips with ``steps`` attack steps.

    ``times`` are the seconds of every timed round, ``bytes`` is the peak memory, and ``forwards`` is the
    number of forwards that the step would take if only convolutions took time.
    """

    name: str
    share: float
    steps: int
    times: list[float]
    bytes: int
    forwards: float

    @property
    def seconds(self) -> float:
        """The median of ``times``."""
        return median(self.times)


@dataclasses.dataclass(frozen=True)
class Costs:
    """The costs of all steps for one model and batch.

    ``rows`` starts with the plain step. ``forward_flops`` counts the operations of one forward of the batch,
    ``matrix_flops`` is the machine's rate for a large matrix product in operations per second, and
    ``profile`` is a table for the last of this package's steps, if requested.
    """

    rows: list[StepCost]
    forward_flops: float
    matrix_flops: float
    clips: int
    profile: str | None


class _OneBackward(nn.Module):
    """A step as another trainer would call it, with one backward at its end."""

    def __init__(self, step: TAFStep):
        super().__init__()
        self.model = step.model
        self.step = step

    def accumulate_grads(self, clips: Tensor, labels: Tensor) -> None:
        self.step(clips, labels)["loss"].backward()


def measure_steps(
    name: str,
    num_segments: int,
    size: int,
    batch_size: int,
    setting: Setting,
    shares: Iterable[float] = (0.0, 0.2, 1.0),
    steps: Iterable[int] = (1,),
    repeats: int = 5,
    profile: bool = False,
    variants: Iterable[str] = ("taf_fast", "naive", "naive, compiled"),
) -> Costs:
    """Time all steps in turn and measure the peak memory of each.

    Args:
        name, num_segments: see :func:`taf_fast.models.build`.
        size: side of the frames in pixels. The clips are random, because times do not depend on their
            content.
        batch_size: clips per step.
        setting: the setting of all steps; its ``compile`` applies to this package's steps only.
        shares: shares of attacked clips, in [0,1], rounded to whole clips.
        steps: numbers of attack steps, K.
        repeats: timed rounds.
        profile: also profile a step.
        variants: the steps to compare with the plain one, from :data:`VARIANTS`. Compiled variants are
            skipped if ``setting`` is not compiled.
    """
    device = setting.device
    clips = torch.randn(batch_size, num_segments, size, size, 3, device=device).movedim(-1, 2)
    clips = clips if setting.channels_last else clips.contiguous()
    labels = torch.randint(0, CLASSES, (batch_size,), device=device)

    def fresh() -> nn.Module:
        model = models.build(name, CLASSES, num_segments).to(device).train()
        return channels_last(model) if setting.channels_last else model

    measured: dict[tuple[str, float, int], tuple[nn.Module, float]] = {
        ("plain", 0.0, 0): (PlainStep(fresh(), setting.compile), 3.0)
    }
    for share in shares:
        attacked = round(share * batch_size)
        p = attacked / batch_size
        for k in steps if attacked else (1,):
            for variant in variants:
                naive = variant.startswith("naive")
                # The first would equal the plain step, the second the naive step.
                if (naive and not attacked) or (variant == "naive, compiled" and not setting.compile):
                    continue
                model = add_adversarial_bn(fresh())
                measured[variant, p, k] = _step(variant, model, attacked, p, k, setting.compile)

    def call(step: nn.Module):
        step.model.zero_grad(set_to_none=True)
        with autocast(device, setting.precision):
            step.accumulate_grads(clips, labels)

    calls = {key: (lambda step=step: call(step)) for key, (step, _) in measured.items()}
    times = timed(calls, repeats, device)
    rows = []
    for key, (step, forwards) in measured.items():
        step.model.zero_grad(set_to_none=True)  # gradients of earlier calls must not count
        peak = _resident(step.model) + peak_bytes(calls[key], device)
        rows.append(StepCost(*key, times[key], peak, forwards))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        PlainStep(measured["plain", 0.0, 0][0].model, compile=False)(clips, labels)
    last = [key for key in measured if not key[0].startswith("naive")][-1]
    operations = operations_by_time(calls[last], device) if profile else None
    rate = matrix_flops(device, getattr(torch, setting.precision))
    return Costs(rows, counter.get_total_flops(), rate, batch_size, operations)


def timed(calls: dict, repeats: int, device: torch.device) -> dict:
    """Time steps with :func:`taf_fast.bench.measure.interleaved_seconds`; some may be compiled."""
    # All steps compile the same functions. Beyond the recompile limit a step would silently run in eager
    # mode, and graphs left from another size would make a size dynamic.
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True):
        return interleaved_seconds(calls, repeats, device)


def _step(
    variant: str, model: nn.Module, attacked: int, p: float, k: int, compile: bool
) -> tuple[nn.Module, float]:
    """Build a variant; return it with the number of forwards that it costs."""
    if variant.startswith("naive"):
        return NaiveStep(model, attacked, k, variant == "naive, compiled"), 6 + 3 * p + 3 * (k - 1)
    through = variant == "through batch statistics"
    augment = TemporalAugment(steps=k, attack_bn="batch" if through else "frozen")
    step = TAFStep(model, augment, composition=first_clips(attacked), compile=compile)
    # The attack's backward reaches the pixels of the attacked clips, or of all clips through batch
    # statistics. Each further attack step adds a forward of them.
    pixels = (1 if through and attacked else p) * (2 * k - 1)
    return _OneBackward(step) if variant == "one backward" else step, 3 + 3 * p + pixels


def _resident(model: nn.Module) -> int:
    """Return the bytes of parameters and buffers; a step's own allocations begin with the gradients."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
