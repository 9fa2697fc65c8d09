"""The results of a sweep, as differences to its first arm or to the one named:

python experiments/synthetic/tables.py FOLDER [ARM]

Scores, losses and attention; top-1 by motion; top-1 by corruption, where it was measured. A number in
brackets is the difference to that arm's runs of the same seeds, with half of its 95 % confidence interval by
Student's t.
"""

import math
import statistics
import sys
from pathlib import Path

from taf_fast.data.synth import LONG_TERM
from taf_fast.files import read_csv
from taf_fast.measure.robustness import ROBUSTNESS, summary
from taf_fast.run.folder import RunFolder
from taf_fast.sweep.stats import student_t


def quantities(run: dict[str, str]) -> dict[str, float]:
    names = ("train_loss", "val_loss", "attention_entropy", "attention_top_share")
    measured = {name.replace("_", " "): float(run[name] or "nan") for name in names}
    return {"top-1": float(run["top1"])} | measured


def by_motion(run: dict[str, str]) -> dict[str, float]:
    folder = RunFolder(Path(run["folder"]))
    classes, predictions = folder.read_classes(), folder.read_predictions()
    return {
        name: 100
        * statistics.fmean(p.place == 0 for p in predictions if (classes[p.label] in LONG_TERM) == long_term)
        for name, long_term in (("long-term motions, top-1 %", True), ("other motions, top-1 %", False))
    }


def by_corruption(run: dict[str, str]) -> dict[str, float]:
    (rows,) = RunFolder(Path(run["folder"])).read_measured(ROBUSTNESS).values()
    means = summary(rows)
    return {name.replace("_", " "): 100 * value for name, value in means.items()}


def print_table(runs: list[dict[str, str]], first: str, measure, digits: int) -> None:
    measured: dict[str, dict[str, dict[str, float]]] = {}  # by arm and seed
    for run in runs:
        measured.setdefault(run["arm"], {})[run["seed"]] = measure(run)
    columns = list(next(iter(measured[first].values())))
    print(f"\n| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for arm, seeds in measured.items():
        cells = []
        for column in columns:
            mean = statistics.fmean(found[column] for found in seeds.values())
            cell = "" if math.isnan(mean) else f"{mean:.{digits}f}"
            if cell and arm != first and len(seeds) > 1:
                differences = [found[column] - measured[first][seed][column] for seed, found in seeds.items()]
                half = student_t(len(seeds) - 1) * statistics.stdev(differences) / math.sqrt(len(seeds))
                cell += f" ({statistics.fmean(differences):+.{digits}f} ± {half:.{digits}f})"
            cells.append(cell)
        print(f"| {arm} | {' | '.join(cells)} |")


runs = read_csv(Path(sys.argv[1]) / "runs.csv")
arm = sys.argv[2] if len(sys.argv) > 2 else next(run["arm"] for run in runs if run["arm"] != "start")
print_table(runs, arm, quantities, 3)
print_table(runs, arm, by_motion, 1)
if RunFolder(Path(runs[-1]["folder"])).robustness.exists():
    print_table(runs, arm, by_corruption, 1)
