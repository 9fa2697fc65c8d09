"""Print the counts of every model's steps as multiples of the plain step's, without a GPU.

python benchmarks/counts.py [model ...]

The last line is that of the last model, for p = 0.2.
"""

import sys

from taf_fast.bench.counts import count_step
from taf_fast.bench.table import count_ratios

MODELS = [f"{family}_resnet50" for family in ("gst", "tam", "tpn", "tsm")]
CLIPS = 30


def main(*models: str) -> None:
    for model in models or MODELS:
        plain = count_step(model, batch_size=CLIPS)
        for share, steps in ((0.0, 1), (1.0, 1), (0.2, 3), (0.2, 1)):
            step = count_step(model, batch_size=CLIPS, attacked=round(share * CLIPS), steps=steps)
            print(f"{model}: {count_ratios(plain, step)}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
