"""The tables of a sweep against its runs."""

import numpy as np
import pytest
import scipy.stats
from sweep.sweep_files import fabricated

from taf_fast.files import read_csv
from taf_fast.run.config import FinetuneConfig
from taf_fast.sweep.plan import PlannedRun, Sweep
from taf_fast.sweep.stats import student_t
from taf_fast.sweep.table import write_tables


def test_statistics_of_runs(tmp_path, seed):
    """Against NumPy and SciPy: arms of any number of seeds, not all the same ones, and of none."""
    random = np.random.default_rng(seed)
    names = ["top1", "top5", "val_loss", "attacked_share", "seconds_per_step"]
    seeds = {
        "start": range(7),
        "first": [0, 1, 2, 4, 6],
        "second": [1, 2, 3, 6],
        "one": [4],
        "unpaired": [3, 5],
    }
    values = {arm: random.random((len(s), 5)) for arm, s in seeds.items()}
    clean = {arm: random.uniform(1, 2, (len(s), 2, 3)) for arm, s in seeds.items() if arm != "second"}
    runs = [
        fabricated(tmp_path, arm, s, values[arm][i], clean[arm][i].tolist() if arm in clean else None)
        for arm in seeds
        for i, s in enumerate(seeds[arm])
    ]
    unfinished = [PlannedRun("never", {}, FinetuneConfig(data="d", out=str(tmp_path / "never/seed0")))]
    table = write_tables(tmp_path, Sweep((*runs, *unfinished), ("attention",)))

    each = read_csv(tmp_path / "runs.csv")
    assert [(row["arm"], int(row["seed"]), row["folder"]) for row in each] == [
        (run.arm, run.config.seed, str(run.folder.path)) for run in runs
    ]
    rows = {row["arm"]: row for row in read_csv(tmp_path / "table.csv")}
    assert list(rows) == list(seeds)

    def check(row, name, samples):
        count = len(samples)
        expected = ["", "", ""]
        if count:
            expected[0] = np.mean(samples)
        if count > 1:
            half = scipy.stats.t.interval(0.95, count - 1, 0, scipy.stats.sem(samples))[1]
            expected[1:] = np.std(samples, ddof=1), half
        for key, value in zip((name, f"{name}_std", f"{name}_ci95"), expected, strict=True):
            assert row[key] == value if value == "" else float(row[key]) == pytest.approx(value, rel=1e-9), (
                key
            )

    for arm, row in rows.items():
        assert int(row["seeds"]) == len(seeds[arm])
        for column, name in enumerate(names):
            check(row, name, values[arm][:, column])
        check(row, "train_loss", clean[arm][:, 1].mean(1) if arm in clean else [])
        first = dict(zip(seeds["first"], values["first"][:, 0], strict=True))
        own = dict(zip(seeds[arm], values[arm][:, 0], strict=True))
        shared = sorted(set(first) & set(own)) if arm != "first" else []
        check(row, "top1_difference_points", [100 * (own[s] - first[s]) for s in shared])

    cells = {column.header: list(column.cells) for column in table.columns}
    assert cells[""] == list(seeds) and cells["seeds"] == ["7", "5", "4", "1", "2"]
    top1 = values["start"][:, 0]
    assert cells["top-1 %"][0] == f"{100 * top1.mean():.1f} ± {100 * top1.std(ddof=1):.1f}"
    assert cells["top-1 %"][3] == f"{100 * values['one'][0, 0]:.1f}"
    difference = values["one"][0, 0] - first[4]
    assert cells["difference"][1::2] == ["", f"{100 * difference:+.1f}"]
    row = rows["start"]
    mean, half = (float(row[f"top1_difference_points{ending}"]) for ending in ("", "_ci95"))
    assert cells["difference"][0] == f"{mean:+.1f} ± {half:.1f}"


@pytest.mark.parametrize("freedom", [*range(1, 31), 99, 100, 1001])
def test_quantiles_of_student_s_distribution(freedom):
    assert student_t(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=1e-9)
