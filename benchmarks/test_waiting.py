"""How long the steps of a fine-tuning run wait for their clips: videos decoded by PyAV or DALI during the
run, or a cache.

    pytest benchmarks/test_waiting.py --benchmark-json=run.json && python benchmarks/report.py run.json

The run takes plain steps, which are the shortest and so demand most of the loader. The first epoch, which
compiles, does not count, nor does the first step of each other epoch, for which nothing is decoded ahead. The
times come from the run's metrics.jsonl and are in extra_info. Timings never decide a test. The environment
variable WORKERS sets the number of processes that decode.
"""

import json
import os
from pathlib import Path

import torch

from taf_fast.bench.measure import percentiles
from taf_fast.data import DECODERS, read_dataset, scan
from taf_fast.data.cache.write import write_cache
from taf_fast.data.synth import ORDERS, write
from taf_fast.run.config import FinetuneConfig
from taf_fast.run.finetune import finetune

CUDA = torch.cuda.is_available()
WORKERS = int(os.environ.get("WORKERS", 2))
STEPS = 8  # an epoch
RUN = dict(augment="none", epochs=3, workers=WORKERS)
if CUDA:
    RUN |= dict(batch_size=32, device="cuda", compile=True, precision="bfloat16")
else:
    RUN |= dict(batch_size=8, model="tsm_resnet18", size=64)


def measure(data: Path, out: Path, decoder: str) -> tuple[list[float], list[float]]:
    """Return the seconds waited before each step and the seconds of each step."""
    finetune(FinetuneConfig(data=str(data), out=str(out), decoder=decoder, **RUN))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "step_seconds" in line]
    counted = [line for line in steps if line["epoch"] > 0 and (line["step"] - 1) % STEPS > 0]
    return [line["wait_seconds"] for line in counted], [line["step_seconds"] for line in counted]


def test_waiting(benchmark, tmp_path, video_format):
    format, size, frames = video_format
    data, cache = tmp_path / "videos", tmp_path / "cache"
    write(data, STEPS * RUN["batch_size"] // len(ORDERS), 1, size, frames, format=format)
    splits = [read_dataset(data, split) for split in ("train", "validation")]
    for _ in write_cache(cache, [(split, scan(split).clips) for split in splits], WORKERS):
        pass
    decoders = DECODERS if CUDA else ("pyav", "dali")
    sources = {decoder: (data, decoder) for decoder in decoders} | {"cache": (cache, "pyav")}

    def measure_all() -> dict[str, tuple[list[float], list[float]]]:
        return {
            name: measure(folder, tmp_path / name, decoder) for name, (folder, decoder) in sources.items()
        }

    benchmark.group = f"{format}, {size[0]} x {size[1]}, {WORKERS} workers, batches of {RUN['batch_size']}"
    benchmark.extra_info["waiting"] = [
        {
            "data": name,
            "wait_milliseconds": percentiles(1000 * value for value in waits),
            "step_milliseconds": percentiles(1000 * value for value in steps),
            "of_the_time": sum(waits) / (sum(waits) + sum(steps)),
        }
        for name, (waits, steps) in benchmark.pedantic(measure_all, rounds=1).items()
    ]
