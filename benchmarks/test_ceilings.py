"""The device's limits: the rates of a large copy and of large matrix products, measured in this run.

    pytest benchmarks/test_ceilings.py --benchmark-json=run.json && python benchmarks/report.py run.json

The rates are in extra_info.
"""

import torch

from taf_fast.bench.measure import copy_rate, matrix_flops
from taf_fast.precision import PRECISIONS

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def test_ceilings(benchmark):
    benchmark.group = "ceilings"

    def measure() -> dict[str, float]:
        rates = {f"{name} matrix product": matrix_flops(DEVICE, getattr(torch, name)) for name in PRECISIONS}
        return {"copy": copy_rate(DEVICE)} | rates

    benchmark.extra_info["ceilings"] = benchmark.pedantic(measure, rounds=1)
