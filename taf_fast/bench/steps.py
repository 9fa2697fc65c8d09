"""The steps of a model side by side: plain, naive, and this package's at given shares of attacked clips."""

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from taf_fast import models
from taf_fast.augment import TemporalAugment
from taf_fast.bench.measure import interleaved_seconds, matrix_flops, operations_by_time, peak_bytes
from taf_fast.bench.naive import NaiveStep
from taf_fast.dual_batch_norm import add_adversarial_bn
from taf_fast.step import PlainStep, TAFStep

CLASSES = 174


class FixedShare(TAFStep):
    """Attacks the first clips of every batch, whatever the model says of them."""

    def __init__(self, model: nn.Module, attacked: int, augment: TemporalAugment, compile: bool):
        super().__init__(model, augment, compile=compile)
        self.attacked = attacked

    def _attacked_rows(self, logits: Tensor, labels: Tensor) -> Tensor:
        return torch.arange(self.attacked, device=labels.device)


@dataclasses.dataclass(frozen=True)
class StepCost:
    """``share`` of the clips attacked with ``steps``, in seconds and bytes of one step; ``forwards`` is
    what the step would cost, in forwards, if nothing but convolutions took time."""

    name: str
    share: float
    steps: int
    seconds: float
    bytes: int
    forwards: float


@dataclasses.dataclass(frozen=True)
class Costs:
    """Of one model and batch: the steps, the plain one first; operations of one forward of the batch, the
    machine's rate of them, and, if wanted, a profile of the last step of this package."""

    rows: list[StepCost]
    forward_flops: float
    matrix_flops: float
    clips: int
    profile: str | None


def measure_steps(
    name: str,
    num_segments: int,
    size: int,
    batch_size: int,
    device: torch.device,
    compile: bool = False,
    shares: Iterable[float] = (0.0, 0.2, 1.0),
    steps: Iterable[int] = (1,),
    repeats: int = 5,
    profile: bool = False,
) -> Costs:
    """Time all steps in turn, and take the peak memory of each.

    Args:
        name, num_segments: see :func:`taf_fast.models.build`.
        size: side of the frames in pixels. Clips are random: times do not depend on what they show.
        compile: this package's steps and the plain one compiled, and the naive one also.
        shares: of attacked clips, in [0,1], rounded to whole clips.
        steps: attack steps, K.
        repeats: timed rounds.
        profile: also profile a step.
    """
    clips = torch.randn(batch_size, num_segments, 3, size, size, device=device)
    labels = torch.randint(0, CLASSES, (batch_size,), device=device)

    def fresh(dual: bool = True) -> nn.Module:
        model = models.build(name, CLASSES, num_segments).to(device).train()
        return add_adversarial_bn(model) if dual else model

    variants: dict[tuple[str, float, int], tuple[nn.Module, float]] = {
        ("plain", 0.0, 0): (PlainStep(fresh(dual=False), compile=compile), 3.0)
    }
    for share in shares:
        attacked = round(share * batch_size)
        p = attacked / batch_size
        for k in steps if attacked else (1,):
            # Each further step forwards the chosen clips and goes back to their pixels.
            ours = FixedShare(fresh(), attacked, TemporalAugment(steps=k), compile)
            variants["taf_fast", p, k] = ours, 3 + 4 * p + 2 * p * (k - 1)
            if attacked:
                naive = 6 + 3 * p + 3 * (k - 1)
                variants["naive", p, k] = NaiveStep(fresh(), attacked, k), naive
                if compile:
                    variants["naive, compiled", p, k] = NaiveStep(fresh(), attacked, k, compile=True), naive

    def call(step: nn.Module):
        step.model.zero_grad(set_to_none=True)
        step.accumulate_grads(clips, labels)

    calls = {key: (lambda step=step: call(step)) for key, (step, _) in variants.items()}
    seconds = interleaved_seconds(calls, repeats, device)
    rows = []
    for key, (step, forwards) in variants.items():
        step.model.zero_grad(set_to_none=True)  # not among what the call allocates
        peak = _resident(step.model) + peak_bytes(calls[key], device)
        rows.append(StepCost(*key, seconds[key], peak, forwards))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        variants["plain", 0.0, 0][0].model(clips)
    last = [key for key in variants if key[0] == "taf_fast"][-1]
    operations = operations_by_time(calls[last], device) if profile else None
    rate = matrix_flops(device, torch.float32)
    return Costs(rows, counter.get_total_flops(), rate, batch_size, operations)


def _resident(model: nn.Module) -> int:
    """Bytes of parameters and buffers; a step's own allocations begin with the gradients."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
