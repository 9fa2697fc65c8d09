"""A plain training step of several processes, by DistributedDataParallel alone and as ``finetune`` does it.

    torchrun --nproc-per-node 2 benchmarks/ranks.py

Each process takes the same number of clips of random pixels; on a CPU it has one thread, and Gloo exchanges
the gradients. A round times each step twice, in opposite orders. Printed is the median over rounds of the
ratio of both, with its standard error, for the wall time and for the CPU time of all processes, which other
work on the machine moves less. The environment variable ROUNDS sets the number of timed rounds, CLIPS that of
clips per process.
"""

import copy
import os
import sys
import time
from collections.abc import Callable
from statistics import median, stdev

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from taf_fast import models
from taf_fast.models.memory_format import channels_last
from taf_fast.process import ranks
from taf_fast.run.optimizer_step import running_statistics
from taf_fast.run.reduction import ReducedStep
from taf_fast.step import PlainStep

ROUNDS = int(os.environ.get("ROUNDS", 40))
CLIPS = int(os.environ.get("CLIPS", 4))
MODEL, FRAMES, PIXELS, CLASSES = "tsm_resnet18", 8, 112, 174


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)


def by_torch(model: nn.Module, clips: Tensor, labels: Tensor) -> Callable[[], None]:
    """The plain step as PyTorch's tutorial has it."""
    engine, optimizer = DistributedDataParallel(model), optimizer_of(model)

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(engine(clips), labels).backward()
        optimizer.step()

    return run


def by_finetune(model: nn.Module, clips: Tensor, labels: Tensor) -> Callable[[], None]:
    """The plain step of a run, with its exchange of scalars and batch statistics."""
    optimizer = optimizer_of(model)
    reduced = ReducedStep(PlainStep(model, compile=False), running_statistics(model), "float32")

    def run() -> None:
        ranks.total([0.0] * 8)
        reduced.zero_grad()
        reduced.accumulate_grads(clips, labels)
        optimizer.step()

    return run


def seconds_of(run: Callable[[], None]) -> tuple[float, float]:
    """Wall time, and CPU time of all ranks."""
    dist.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    dist.barrier()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return wall, ranks.total([cpu])[0]


def main() -> None:
    device = ranks.own_device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(0)
    model = channels_last(models.build(MODEL, CLASSES, FRAMES)).to(device).train()
    clips = torch.rand(CLIPS, FRAMES, 3, PIXELS, PIXELS, device=device)
    labels = torch.arange(CLIPS, device=device)
    steps = {
        "plain, DistributedDataParallel": by_torch(copy.deepcopy(model), clips, labels),
        "plain, finetune": by_finetune(copy.deepcopy(model), clips, labels),
    }
    rounds: list[dict[str, tuple[float, float]]] = []
    for number in range(ROUNDS + 2):
        found = {name: [0.0, 0.0] for name in steps}
        for name in [*steps, *reversed(steps)]:
            for kind, seconds in enumerate(seconds_of(steps[name])):
                found[name][kind] += seconds / 2
        if number >= 2:
            rounds.append({name: (wall, cpu) for name, (wall, cpu) in found.items()})
    places = ranks.places()
    if not ranks.first():
        return
    print(f"{places}, {MODEL}, {CLIPS} clips of {FRAMES} x {PIXELS} x {PIXELS} each, {ROUNDS} rounds")
    first = next(iter(steps))
    for name in steps:
        texts = []
        for kind, title in enumerate(("wall", "CPU")):
            ratios = [found[name][kind] / found[first][kind] for found in rounds]
            error = 1.25 * stdev(ratios) / len(ratios) ** 0.5  # of a median
            seconds = median(found[name][kind] for found in rounds)
            texts.append(f"{title} {1000 * seconds:.1f} ms, {median(ratios):.4f} ± {error:.4f}")
        print(f"{name}: {'; '.join(texts)}")


if __name__ == "__main__":
    with ranks.joined():
        main()
        sys.exit()
