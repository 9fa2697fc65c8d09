"""The steps of a model side by side: plain, naive, and this package's at given shares of attacked clips."""

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
from taf_fast.dual_batch_norm import add_adversarial_bn
from taf_fast.memory_format import channels_last
from taf_fast.precision import autocast
from taf_fast.step import PlainStep, TAFStep

CLASSES = 174
#: The step as fine-tuning takes it; with one backward, for other trainers; with the attack's gradient through
#: the batch statistics; as written from the paper, in eager mode and compiled.
VARIANTS = ("taf_fast", "one backward", "through batch statistics", "naive", "naive, compiled")


class FixedShare(TAFStep):
    """Attacks the first clips of every batch, whatever the model says of them."""

    def __init__(self, model: nn.Module, attacked: int, augment: TemporalAugment, compile: bool):
        super().__init__(model, augment, compile=compile)
        self.attacked = attacked

    def _chosen(self, logits: Tensor, labels: Tensor) -> Tensor:
        return torch.arange(len(labels), device=labels.device) < self.attacked


@dataclasses.dataclass(frozen=True)
class Setting:
    """How every step runs: ``compile`` concerns this package's steps, the plain one among them;
    ``precision`` is as in :mod:`taf_fast.precision`; ``channels_last`` lays out clips and weights so."""

    device: torch.device
    compile: bool = False
    precision: str = "float32"
    channels_last: bool = True

    def describe(self) -> str:
        names = {"channels_last": self.channels_last, "compiled": self.compile}
        return ", ".join([self.precision, *(name for name, on in names.items() if on)])


@dataclasses.dataclass(frozen=True)
class StepCost:
    """``share`` of the clips attacked with ``steps``: seconds of every timed round and the most bytes held;
    ``forwards`` is what the step would cost, in forwards, if nothing but convolutions took time."""

    name: str
    share: float
    steps: int
    times: list[float]
    bytes: int
    forwards: float

    @property
    def seconds(self) -> float:
        """The median."""
        return median(self.times)


@dataclasses.dataclass(frozen=True)
class Costs:
    """Of one model and batch: the steps, the plain one first; operations of one forward of the batch, the
    machine's rate of them, and, if wanted, a profile of the last step of this package."""

    rows: list[StepCost]
    forward_flops: float
    matrix_flops: float
    clips: int
    profile: str | None


class _OneBackward(nn.Module):
    """A step in the form for other trainers, with one backward at its end."""

    def __init__(self, step: TAFStep):
        super().__init__()
        self.model, self.step = step.model, step

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
    """Time all steps in turn, and take the peak memory of each.

    Args:
        name, num_segments: see :func:`taf_fast.models.build`.
        size: side of the frames in pixels. Clips are random: times do not depend on what they show.
        setting: of all steps, but for ``compile``.
        shares: of attacked clips, in [0,1], rounded to whole clips.
        steps: attack steps, K.
        repeats: timed rounds.
        profile: also profile a step.
        variants: beside the plain step, of :data:`VARIANTS`; none compiled where ``setting`` is not.
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
                # One would be the plain step, the other the naive one once more.
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
        step.model.zero_grad(set_to_none=True)  # not among what the call allocates
        peak = _resident(step.model) + peak_bytes(calls[key], device)
        rows.append(StepCost(*key, times[key], peak, forwards))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        PlainStep(measured["plain", 0.0, 0][0].model, compile=False)(clips, labels)
    last = [key for key in measured if not key[0].startswith("naive")][-1]
    operations = operations_by_time(calls[last], device) if profile else None
    rate = matrix_flops(device, getattr(torch, setting.precision))
    return Costs(rows, counter.get_total_flops(), rate, batch_size, operations)


def timed(calls: dict, repeats: int, device: torch.device) -> dict:
    """:func:`taf_fast.bench.measure.interleaved_seconds` of steps, of which some may be compiled."""
    # They compile the same functions: one too many would quietly be timed as it is in eager mode; and what
    # another size has left would make a size dynamic.
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True):
        return interleaved_seconds(calls, repeats, device)


def _step(
    variant: str, model: nn.Module, attacked: int, p: float, k: int, compile: bool
) -> tuple[nn.Module, float]:
    """A variant and its forwards."""
    if variant.startswith("naive"):
        return NaiveStep(model, attacked, k, variant == "naive, compiled"), 6 + 3 * p + 3 * (k - 1)
    through = variant == "through batch statistics"
    augment = TemporalAugment(steps=k, attack_bn="batch" if through else "frozen")
    step = FixedShare(model, attacked, augment, compile)
    # The attack goes back to the pixels of its clips, of all clips through batch statistics; each further
    # step forwards them before.
    pixels = (1 if through and attacked else p) * (2 * k - 1)
    return _OneBackward(step) if variant == "one backward" else step, 3 + 3 * p + pixels


def _resident(model: nn.Module) -> int:
    """Bytes of parameters and buffers; a step's own allocations begin with the gradients."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
