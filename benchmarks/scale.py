"""Print the tables of docs/scale.md: TSM-ResNet-50 on up to 64 GPUs, predicted and not measured.

python benchmarks/scale.py [--count]

The time of a step on one GPU is that of taf_fast.bench.prediction. The exchange is a ring of all GPUs, in
which a bucket of gradients takes 2 (n-1) / n times its bytes over the rate of the slowest link. Buckets are
exchanged one after another, each once the adversarial backward has filled it, at an even pace; what is left
of the exchange after that backward is added to the step. Not in it: GPUs that wait for a slower one, the
latency of each message, and kernels that an exchange slows down.

``--count`` counts the steps anew, which takes minutes, and prints the lines of STEPS.
"""

import argparse
from collections.abc import Iterator
from typing import NamedTuple

import torch

from taf_fast import models
from taf_fast.bench.counts import CLASSES, count_step
from taf_fast.bench.prediction import predicted_ends
from taf_fast.models.dual_batch_norm import add_adversarial_bn

MODEL, SHARE = "tsm_resnet50", 0.2


class Step(NamedTuple):
    """Predicted milliseconds of a TAF step on one H100 in bfloat16, and of its adversarial backward."""

    milliseconds: float
    backward: float


#: By clips on the GPU; what ``--count`` prints.
STEPS = {8: Step(19.1, 2.4), 32: Step(67.1, 6.3), 64: Step(135.2, 13.2)}
GPUS = (8, 32, 64)
#: Assumed bytes per second of the slowest link of the ring: NVLink within a machine, and 85 % of the network
#: card that all GPUs of a machine share.
LINKS = {"NVLink": 370e9, "400 Gb/s": 0.85 * 400e9 / 8, "100 Gb/s": 0.85 * 100e9 / 8}
#: Bytes of a number by the precision of the exchange.
BYTES = {"float32": 4, "bfloat16": 2}
#: Bytes at which DistributedDataParallel begins another bucket: the second one, and any later one.
BUCKETS = (2**20, 25 * 2**20)
#: Milliseconds of a CPU core for a clip: 2 cores over the clips a second that docs/data.md measured.
DECODING = {
    "WebM, 427 x 240": 2e3 / 95,
    "JPEG": 2e3 / 757,
    "H.264, 1280 x 720": 2e3 / 7,
    "a cache": 2e3 / 500,
}
GPUS_A_MACHINE = 8


def gradients() -> list[int]:
    """The elements of each gradient in the order in which the backward makes them."""
    with torch.device("meta"):
        model = add_adversarial_bn(models.build(MODEL, CLASSES, 8))
    return [parameter.numel() for parameter in reversed(list(model.parameters()))]


def buckets(sizes: list[int]) -> Iterator[tuple[float, int]]:
    """Of each bucket the share of all gradients that are made once it is full, and its elements."""
    limit, elements = BUCKETS[0], 0
    for number, size in enumerate(sizes, 1):
        elements += size
        if 4 * elements >= limit or number == len(sizes):
            yield number / len(sizes), elements
            limit, elements = BUCKETS[1], 0


def with_exchange(step: Step, gpus: int, rate: float, size: int, sizes: list[int]) -> float:
    """Milliseconds of a step of several GPUs that exchange numbers of ``size`` bytes at ``rate`` a second."""
    done = 0.0
    for share, elements in buckets(sizes):
        done = max(done, share * step.backward) + 1e3 * 2 * (gpus - 1) / gpus * size * elements / rate
    return step.milliseconds + max(0.0, done - step.backward)


def gpu_table(sizes: list[int]) -> Iterator[str]:
    """Milliseconds, and efficiency: the share of the clips a second that GPUs without exchange would have."""
    yield "| clips a GPU | link | exchange | 1 GPU | " + " | ".join(f"{n} GPUs" for n in GPUS) + " |"
    yield "|---|---|---|" + "---|" * (1 + len(GPUS))
    for clips, step in STEPS.items():
        for link, rate in LINKS.items():
            for precision, size in BYTES.items():
                times = [with_exchange(step, gpus, rate, size, sizes) for gpus in GPUS]
                cells = [f"{time:.1f} ({100 * step.milliseconds / time:.0f} %)" for time in times]
                alone = f"{step.milliseconds:.1f}"
                yield "| " + " | ".join([str(clips), link, precision, alone, *cells]) + " |"


def data_table() -> Iterator[str]:
    """Clips a second that the GPUs take, and the CPU cores that decode as many for a machine."""
    yield "| clips a GPU | a GPU | a machine | 64 GPUs | " + " | ".join(DECODING) + " |"
    yield "|---|---|---|---|" + "---|" * len(DECODING)
    for clips, step in STEPS.items():
        rate = 1e3 * clips / step.milliseconds
        machine = GPUS_A_MACHINE * rate
        cores = [machine * milliseconds / 1e3 for milliseconds in DECODING.values()]
        yield "| " + " | ".join(f"{value:.0f}" for value in (clips, rate, machine, 64 * rate, *cores)) + " |"


def tables() -> Iterator[str]:
    """All lines that docs/scale.md shows."""
    sizes = gradients()
    parts = " + ".join(f"{4 * elements / 1e6:.1f}" for _, elements in buckets(sizes))
    yield f"{len(sizes)} gradients, {4 * sum(sizes) / 1e6:.1f} MB in float32, in buckets of {parts} MB"
    yield ""
    yield from gpu_table(sizes)
    yield ""
    yield from data_table()


def counted(clips: int) -> Step:
    """The step of ``clips`` clips, counted now."""
    counts = count_step(MODEL, batch_size=clips, attacked=round(SHARE * clips))
    ends = predicted_ends(counts.events, "bfloat16")
    backward = ends["adversarial backward"] - ends["adversarial forward"]
    return Step(round(1e3 * max(ends.values()), 1), round(1e3 * backward, 1))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", action="store_true", help="Count the steps anew.")
    if parser.parse_args().count:
        for clips in STEPS:
            print(f"{clips}: {counted(clips)}", flush=True)
    else:
        print("\n".join(tables()))


if __name__ == "__main__":
    main()
