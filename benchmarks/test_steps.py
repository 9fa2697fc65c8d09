"""Training steps of every model: plain, this package's variants, and the literal implementation of the paper.

    pytest benchmarks/test_steps.py -k "tsm and usual" --benchmark-json=run.json
    python benchmarks/report.py run.json

The steps of a test are timed in turn, so that each ratio compares steps of the same run. The times are in
extra_info, while pytest-benchmark's own table shows how long the measurement took. Timings never decide a
test. The environment variable REPEATS sets the number of timed rounds; their 20th, 50th and 80th percentiles
are kept.
"""

import dataclasses
import os
from collections.abc import Iterable, Iterator

import pytest
import torch

from taf_fast.bench.measure import percentiles
from taf_fast.bench.steps import VARIANTS, Costs, Setting, measure_steps

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
SIZES = [(B, T) for B in (8, 32, 64) for T in (8, 16)] if CUDA else [(10, 8)]
MODELS = [f"{family}_resnet50" for family in ("tsm", "gst", "tam", "tpn")]
CASES = [(name, 224 if CUDA else 64, True) for name in MODELS]  # model, pixels, channels_last
if not CUDA:
    CASES += [("tsm_resnet50", 64, False), ("tsm_resnet18", 112, True)]
# Shares of attacked clips, K, and the steps that are timed in addition to the plain one. Each is compiled
# anew.
CHOICES = {
    "usual": ((0.0, 0.1, 0.2, 1.0), 1, ("taf_fast", "naive")),
    "K3": ((0.2, 1.0), 3, ("taf_fast", "naive")),
    "variants": ((0.2, 1.0), 1, VARIANTS),
}
REPEATS = int(os.environ.get("REPEATS", 20 if CUDA else 5))


def measure(name: str, pixels: int, size: tuple[int, int], setting: Setting, choice: str) -> Costs:
    clips, frames = size
    shares, k, variants = CHOICES[choice]

    def with_variants(variants: Iterable[str]) -> Costs:
        return measure_steps(name, frames, pixels, clips, setting, shares, (k,), REPEATS, variants=variants)

    try:
        return with_variants(variants)
    except torch.OutOfMemoryError:
        pass  # retry outside: the exception keeps the memory of the failed step alive
    # The naive step holds several graphs at a time and needs the most memory.
    return with_variants([variant for variant in variants if not variant.startswith("naive")])


def rows(costs: Costs) -> Iterator[dict]:
    plain = costs.rows[0]
    for row in costs.rows:
        values = {
            "step": row.name,
            "share": row.share,
            "attack_steps": row.steps,
            "milliseconds": percentiles(1000 * seconds for seconds in row.times),
            "clips_per_second": costs.clips / row.seconds,
            "bytes": row.bytes,
            "forwards": row.forwards,
        }
        if row is not plain:
            values["over_plain"] = row.seconds / plain.seconds - 1
            values["over_plain_by_forwards"] = row.forwards / plain.forwards - 1
            values["memory_against_plain"] = row.bytes / plain.bytes
        naive = [
            other.seconds
            for other in costs.rows
            if other.name.startswith("naive") and (other.share, other.steps) == (row.share, row.steps)
        ]
        if naive:  # speed relative to the faster of the naive steps, eager or compiled
            values["against_naive"] = min(naive) / row.seconds
        yield values


def label(case: tuple[str, int, bool]) -> str:
    name, pixels, channels_last = case
    return f"{name}-{pixels}px-{'channels_last' if channels_last else 'contiguous'}"


@pytest.mark.parametrize("size", SIZES, ids=[f"B{B}-T{T}" for B, T in SIZES])
@pytest.mark.parametrize("case", CASES, ids=label)
@pytest.mark.parametrize("choice", CHOICES)
def test_step(benchmark, choice, case, size):
    (name, pixels, channels_last), (clips, frames) = case, size
    setting = Setting(DEVICE, CUDA, "bfloat16" if CUDA else "float32", channels_last)
    benchmark.group = f"{name}, {clips} clips of {frames} x {pixels} pixels, {setting.describe()}, {choice}"
    costs = benchmark.pedantic(measure, (name, pixels, size, setting, choice), rounds=1, iterations=1)
    benchmark.extra_info |= {
        "model": name,
        "pixels": pixels,
        "clips": clips,
        "frames": frames,
        "setting": dataclasses.asdict(setting) | {"device": str(DEVICE), "threads": torch.get_num_threads()},
        "forward_flops": costs.forward_flops,
        "matrix_flops": costs.matrix_flops,
        "steps": list(rows(costs)),
    }
