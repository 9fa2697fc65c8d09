"""How fast the main thread launches kernels while one worker process, or one thread, decodes.

    pytest benchmarks/test_launching.py --benchmark-json=run.json && python benchmarks/report.py run.json

Launches are in-place additions to a tensor of one value, on a GPU if there is one: as in a training step, the
interpreter's lock is what they take. They are counted in turn alone and next to each of the two, while it
decodes the batches ahead. Timings never decide a test. The environment variable REPEATS sets how often.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from taf_fast.bench.measure import percentiles
from taf_fast.data import ClipLoader, read_dataset, scan
from taf_fast.data.synth import ORDERS, write

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
REPEATS = int(os.environ.get("REPEATS", 20))
SECONDS = 0.05
# Clips of a batch, so that decoding the two that are ahead takes longer than SECONDS.
BATCH_SIZE = {"ssv1": 32, "ssv2": 8, "diving48": 8}


def launches_per_second(value: torch.Tensor) -> float:
    if value.is_cuda:
        torch.cuda.synchronize()
    launches, started = 0, time.perf_counter()
    while time.perf_counter() < started + SECONDS:
        for _ in range(100):
            value.add_(1)
        launches += 100
    return launches / (time.perf_counter() - started)


def while_decoding(loader: ClipLoader, measure: Callable[[], float]) -> float:
    batches = iter(loader)
    next(batches)
    found = measure()
    for _ in batches:  # so that nothing is decoded afterwards
        pass
    return found


def test_launches(benchmark, tmp_path, video_format):
    format, size, frames = video_format
    batch_size = BATCH_SIZE[format]
    write(tmp_path / format, 3 * batch_size // len(ORDERS), 0, size, frames, format=format)
    manifest = scan(read_dataset(tmp_path / format, "train"))
    measure = partial(launches_per_second, torch.zeros(1, device=DEVICE))
    calls: dict[str, Callable[[], float]] = {"nothing": measure}
    for kind in ("workers", "threads"):
        loader = ClipLoader(manifest, 8, 224, batch_size, train=True, **{kind: 1})
        calls[f"one of {kind}"] = partial(while_decoding, loader, measure)

    def measure_all() -> dict[str, list[float]]:
        for call in calls.values():
            call()
        turns = [{name: call() for name, call in calls.items()} for _ in range(REPEATS)]
        return {name: [turn[name] for turn in turns] for name in calls}

    rates = benchmark.pedantic(measure_all, rounds=1)
    benchmark.group = f"{format}, {size[0]} x {size[1]}, launches on {DEVICE}"
    benchmark.extra_info["launching"] = [
        {
            "while": name,
            "launches_per_second": percentiles(found),
            "of_alone": median(a / b for a, b in zip(found, rates["nothing"], strict=True)),
        }
        for name, found in rates.items()
    ]
