"""Turn the JSON of benchmarks into benchmarks/results/<device>-<date and time>.json and Markdown tables.

python benchmarks/report.py run.json [another.json ...] [clocks.csv]

clocks.csv is the output of nvidia-smi during the benchmarks, see gpu_suite.sh.
"""

import csv
import datetime
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
import triton
from bars import Bar, bars

from taf_fast.bench.measure import percentiles

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
# Constant properties of the card; the changing ones are in clocks.csv.
CARD = ("driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit")
BUSY = "utilization.gpu [%]"
# Kinds of results, each with a key that only its entries have.
KINDS = {
    "ceilings": "ceilings",
    "rows": "variant",
    "steps": "steps",
    "switches": "switches",
    "sgd": "sgd",
    "data": "loaders",
    "waiting": "waiting",
    "launching": "launching",
}


def output_of(*command: str) -> str | None:
    """Return the output of a command, or None if it failed."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def environment() -> dict:
    cuda = torch.cuda.is_available()
    query = ("nvidia-smi", f"--query-gpu={','.join(CARD)}", "--format=csv,noheader", "--id=0")
    values = output_of(*query) if cuda else None
    return {
        "device": torch.cuda.get_device_name(0) if cuda else f"CPU {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "commit": output_of("git", "rev-parse", "HEAD"),
        "modified": bool(output_of("git", "status", "--porcelain", "--untracked-files=no")),
        "nvidia_smi": dict(zip(CARD, values.split(", "), strict=True)) if values else None,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def markdown(columns: str, rows: Iterable[tuple[str, ...]]) -> str:
    ruler = "---|" * len(columns.split("|"))
    return "\n".join([f"| {columns} |", f"|{ruler}", *(f"| {' | '.join(row)} |" for row in rows)])


def shown(row: dict, key: str, form: str) -> str:
    """Format a value of a row; return an empty string if the row lacks it."""
    return form.format(row[key]) if key in row else ""


def spread(percentiles: dict[str, float]) -> str:
    return " / ".join(f"{percentiles[p]:.1f}" for p in ("p20", "p50", "p80"))


def while_busy(log: Path) -> dict[str, dict[str, float]]:
    """Return percentiles of nvidia-smi's numeric columns over the samples with 100 % GPU utilisation."""
    with log.open(newline="", encoding="utf-8") as file:
        samples = [row for row in csv.DictReader(file, skipinitialspace=True) if row.get(BUSY) == "100"]
    columns = {name: [sample[name] for sample in samples] for name in (samples or [{}])[0]}
    return {
        name: percentiles(map(float, values))
        for name, values in columns.items()
        if all(value.replace(".", "", 1).isdecimal() for value in values)
    }


def ceilings_table(case: dict) -> str:
    return markdown(
        "ceiling | rate",
        (
            (name, f"{rate / 1e12:.3g} {'TB/s' if name == 'copy' else 'TFLOP/s'}")
            for name, rate in case["ceilings"].items()
        ),
    )


def ops_table(rows: list[dict]) -> str:
    return markdown(
        "case | us, p20 / p50 / p80 | GB/s | of a copy | against eager | against compiled",
        (
            (
                row["case"],
                spread(row["microseconds"]),
                f"{row['gigabytes_per_second']:.1f}",
                shown(row, "against_copy", "{:.0%}"),
                shown(row, "against_eager", "{:.2f}x"),
                shown(row, "against_compiled", "{:.2f}x"),
            )
            for row in rows
            if row["variant"] == "taf_fast"
        ),
    )


def steps_table(case: dict) -> str:
    # Forwards per millisecond at the rate of a large matrix product.
    rate = case["matrix_flops"] / case["forward_flops"] / 1000
    return markdown(
        "step | attacked | ms, p20 / p50 / p80 | clips / s | over plain | by forwards | memory "
        "| of matmul | against naive",
        (
            (
                row["step"],
                f"{row['share']:.0%}" if "over_plain" in row else "",
                spread(row["milliseconds"]),
                f"{row['clips_per_second']:.1f}",
                shown(row, "over_plain", "{:+.0%}"),
                shown(row, "over_plain_by_forwards", "{:+.0%}"),
                shown(row, "memory_against_plain", "{:.2f}x") or f"{row['bytes'] / 2**30:.2f} GiB",
                f"{row['forwards'] / row['milliseconds']['p50'] / rate:.0%}",
                shown(row, "against_naive", "{:.2f}x"),
            )
            for row in case["steps"]
        ),
    )


def switches_table(case: dict) -> str:
    first = case["switches"][0]["setting"]
    return markdown(
        f"step | setting | ms, p20 / p50 / p80 | clips / s | against {first} | over plain",
        (
            (
                row["step"],
                row["setting"],
                spread(row["milliseconds"]),
                f"{row['clips_per_second']:.1f}",
                f"{row['against_first']:.2f}x",
                f"{row['over_plain']:+.0%}" if row["step"] != "plain" else "",
            )
            for row in case["switches"]
        ),
    )


def sgd_table(case: dict) -> str:
    return markdown(
        "SGD | ms, p20 / p50 / p80 | of a plain step",
        (
            (row["implementation"], spread(row["milliseconds"]), f"{row['of_plain_step']:.1%}")
            for row in case["sgd"]
        ),
    )


def data_table(case: dict) -> str:
    first, second = (row["loader"] for row in case["loaders"][:2])
    return markdown(
        f"loader | clips / s | against {first} | against {second}",
        (
            (
                row["loader"],
                f"{row['clips_per_second']:.1f}",
                f"{row['against_first']:.2f}x",
                f"{row['against_second']:.2f}x",
            )
            for row in case["loaders"]
        ),
    )


def waiting_table(case: dict) -> str:
    return markdown(
        "data | ms of a step | ms waited before it, p20 / p50 / p80 | of the time",
        (
            (
                row["data"],
                f"{row['step_milliseconds']['p50']:.1f}",
                spread(row["wait_milliseconds"]),
                f"{row['of_the_time']:.1%}",
            )
            for row in case["waiting"]
        ),
    )


def launching_table(case: dict) -> str:
    return markdown(
        "while | launches / s, p20 / p50 / p80 | of those alone",
        (
            (row["while"], spread(row["launches_per_second"]), f"{row['of_alone']:.0%}")
            for row in case["launching"]
        ),
    )


def bars_table(found: list[Bar]) -> str:
    return markdown(
        "claim | worst value | case | holds",
        ((bar.claim, bar.worst, bar.case, "yes" if bar.holds else "**no**") for bar in found),
    )


def main(*paths: str) -> None:
    logs = [Path(path) for path in paths if path.endswith(".csv")]
    entries = [
        {"case": entry["group"], **entry["extra_info"]}
        for path in paths
        if path.endswith(".json")
        for entry in json.loads(Path(path).read_text(encoding="utf-8"))["benchmarks"]
    ]
    results = {kind: [entry for entry in entries if key in entry] for kind, key in KINDS.items()}
    about = environment()
    for log in logs:
        about["while_busy"] = while_busy(log)
    name = re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    target = RESULTS / f"{name}-{about['date'][:19].replace(':', '')}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({"environment": about, **results}, indent=1) + "\n", encoding="utf-8")
    print(", ".join(f"{key} {value}" for key, value in about.items() if value is not None))
    if results["rows"]:
        print(f"\n{ops_table(results['rows'])}")
    claimed_of_gpus = bars(results) if torch.cuda.is_available() else []
    if claimed_of_gpus:
        print(f"\n{bars_table(claimed_of_gpus)}")
    for kind, table in TABLES.items():
        for case in results[kind]:
            print(f"\n{case['case']}\n\n{table(case)}")
    print(f"\nwritten: {target.relative_to(ROOT)}")


TABLES = {
    "ceilings": ceilings_table,
    "steps": steps_table,
    "switches": switches_table,
    "sgd": sgd_table,
    "data": data_table,
    "waiting": waiting_table,
    "launching": launching_table,
}

if __name__ == "__main__":
    main(*sys.argv[1:])
