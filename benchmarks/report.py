"""From the JSON of test_ops.py to benchmarks/results/<device>-<date>.json and a Markdown table.

python benchmarks/report.py run.json
"""

import datetime
import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import torch
import triton

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
CLOCKS = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit")


def output_of(*command: str) -> str | None:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def environment() -> dict:
    cuda = torch.cuda.is_available()
    query = ("nvidia-smi", f"--query-gpu={','.join(CLOCKS)}", "--format=csv,noheader", "--id=0")
    values = output_of(*query) if cuda else None
    return {
        "device": torch.cuda.get_device_name(0) if cuda else f"CPU {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "commit": output_of("git", "rev-parse", "HEAD"),
        "modified": bool(output_of("git", "status", "--porcelain", "--untracked-files=no")),
        "nvidia_smi": dict(zip(CLOCKS, values.split(", "), strict=True)) if values else None,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def table(rows: list[dict]) -> str:
    lines = [
        "| case | us, p20 / p50 / p80 | GB/s | of a copy | against eager | against compiled |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["variant"] != "taf_fast":
            continue
        spread = " / ".join(f"{row['microseconds'][p]:.1f}" for p in ("p20", "p50", "p80"))
        copy = f"{row['against_copy']:.0%}" if "against_copy" in row else ""
        ratios = (f"{row[key]:.2f}x" if key in row else "" for key in ("against_eager", "against_compiled"))
        cells = (row["case"], spread, f"{row['gigabytes_per_second']:.1f}", copy, *ratios)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(path: str) -> None:
    benchmarks = json.loads(Path(path).read_text(encoding="utf-8"))["benchmarks"]
    rows = [
        {"case": entry["group"], **entry["extra_info"]}
        for entry in benchmarks
        if "variant" in entry["extra_info"]
    ]
    about = environment()
    name = re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    target = RESULTS / f"{name}-{about['date'][:10]}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({"environment": about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    print(", ".join(f"{key} {value}" for key, value in about.items() if value is not None))
    print()
    print(table(rows))
    print(f"\nwritten: {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
