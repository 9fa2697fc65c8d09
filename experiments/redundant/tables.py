"""Prints the tables of README.md from what measure.py wrote:

python experiments/redundant/tables.py [CSV]

The ± of a difference is half of its 95 % confidence interval by Student's t over the runs of the same seeds,
any other ± the standard deviation over seeds.
"""

import math
import statistics
import sys
from pathlib import Path

from taf_fast.files import read_csv
from taf_fast.sweep.stats import half_interval

RESULTS = Path(__file__).parent / "results" / "runs.csv"
START, PLAIN, TAF, UNPERTURBED = "start", "plain", "TAF", "wrong clips, unperturbed"
PAIRS = ((PLAIN, START), (TAF, START), (TAF, PLAIN), (TAF, UNPERTURBED))
OTHERS = {
    "motions": "synthetic/results/choices_runs.csv",
    "motions, less data": "synthetic/results/data_size_runs.csv",
    "motions, early stop": "synthetic/results/early_stop_runs.csv",
}
SHARES = ("p_first", "p_last", "attacked_share")
VERSIONS = {"both": "both cues", "hard": "hard cue alone"}

Runs = dict[str, dict[str, dict[str, float]]]
"""What was measured, by arm and seed. Shares of clips are in percent."""


def main(path: Path) -> None:
    runs = read(path)
    table(["", "seeds", "value"], [[title, *cells] for title, *cells in setting(runs)])
    for version, title in VERSIONS.items():
        top1, loss = f"{version}_top1", f"{version}_loss"
        table(
            [title, "top-1 %", "to checkpoint", "to plain", "to unperturbed", "loss", "to plain"],
            [
                [
                    arm,
                    spread(runs[arm], top1, 1),
                    *(difference(runs, arm, other, top1, 1) for other in (START, PLAIN, UNPERTURBED)),
                    spread(runs[arm], loss, 3),
                    difference(runs, arm, PLAIN, loss, 3),
                ]
                for arm in runs
            ],
        )
    for version, title in VERSIONS.items():
        names = [f"{version}_{name}" for name in ("entropy", "hard_share", "easy_share")]
        table(
            [
                f"attention, {title}",
                "entropy",
                "to plain",
                "at hard cue",
                "to plain",
                "at easy cue",
                "to plain",
            ],
            [
                [arm]
                + [
                    cell
                    for name in names
                    for cell in (spread(runs[arm], name, 3), difference(runs, arm, PLAIN, name, 3))
                ]
                for arm in runs
            ],
        )
    table(
        ["training", "attacked %", "training loss", "top-1 % on training clips"],
        [
            [
                arm,
                *(
                    spread(runs[arm], *column)
                    for column in (("attacked_share", 0), ("training_loss", 3), ("train_top1", 1))
                ),
            ]
            for arm in runs
        ],
    )
    table(
        ["top-1", *(f"{arm} to {other}" for arm, other in PAIRS), "deviation", "seeds"],
        [summary(title, read(RESULTS.parents[2] / file), "top1") for title, file in OTHERS.items()]
        + [summary("redundant cues", runs, "both_top1")],
    )


def read(path: Path) -> Runs:
    runs: Runs = {}
    for row in read_csv(path):
        arm, seed = row.pop("arm"), row.pop("seed")
        runs.setdefault(arm, {})[seed] = {
            name: float(value or "nan") * (100 if name in SHARES or "top1" in name else 1)
            for name, value in row.items()
            if name != "folder"
        }
    return runs


def setting(runs: Runs) -> list[tuple[str, str, str]]:
    """How the checkpoints compare with those of the paper."""
    start = runs[START]
    gaps = {
        seed: {
            "both": row["train_top1"] - row["both_top1"],
            "half": row["train_top1"] - (row["both_top1"] + row["hard_top1"]) / 2,
        }
        for seed, row in start.items()
    }
    rows = (
        ("checkpoint: top-1 % on training clips", start, "train_top1"),
        ("checkpoint: train-validation gap in points, with both cues", gaps, "both"),
        ("checkpoint: the same, with half of the validation clips without the easy cue", gaps, "half"),
        ("p, % of the training clips wrong in the checkpoint's last epoch", start, "p_last"),
        ("p, % wrong in the first epoch of fine-tuning with TAF", runs[TAF], "p_first"),
    )
    return [(title, str(len(seeds)), spread(seeds, name, 1)) for title, seeds, name in rows]


def differences(runs: Runs, arm: str, other: str, name: str) -> list[float]:
    """For every seed of both arms, the value of the run of ``arm`` less that of ``other``."""
    return [row[name] - runs[other][seed][name] for seed, row in runs[arm].items() if seed in runs[other]]


def difference(runs: Runs, arm: str, other: str, name: str, digits: int) -> str:
    found = differences(runs, arm, other, name)
    if arm == other or not found:
        return ""
    half = half_interval(found)
    text = f"{statistics.fmean(found):+.{digits}f}"
    return text if half is None else f"{text} ± {half:.{digits}f}"


def summary(title: str, runs: Runs, name: str) -> list[str]:
    """The differences of PAIRS, the standard deviation of TAF's to plain, and the seeds that it asks for."""
    deviation = statistics.stdev(differences(runs, TAF, PLAIN, name))
    cells = [difference(runs, arm, other, name, 1) if other in runs else "" for arm, other in PAIRS]
    return [title, *cells, f"{deviation:.1f}", str(seeds_needed(deviation))]


def spread(seeds: dict[str, dict[str, float]], name: str, digits: int) -> str:
    values = [row[name] for row in seeds.values()]
    mean = statistics.fmean(values)
    if math.isnan(mean):
        return ""
    return (
        f"{mean:.{digits}f} ± {statistics.stdev(values):.{digits}f}"
        if len(values) > 1
        else f"{mean:.{digits}f}"
    )


def seeds_needed(deviation: float, points: float = 1) -> int:
    """Pairs of runs in which a difference is found at the 5 % level four times out of five.

    n = ((1.96 + 0.84) deviation / points)^2, with the standard deviation of the paired differences.
    """
    return math.ceil(((1.96 + 0.84) * deviation / points) ** 2)


def table(titles: list[str], rows: list[list[str]]) -> None:
    print(f"\n| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS)
