"""``metrics.jsonl``: one JSON object a line, in the order of the steps."""

import json
from pathlib import Path

from taf_fast.files import write_text


class MetricsLog:
    """Appends to a run's measurements; every line is in the file when ``append`` returns."""

    def __init__(self, path: Path):
        self.path = path
        self.lines = 0

    def append(self, **values) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
        self.lines += 1

    def rewind(self, lines: int) -> None:
        """Keep the first ``lines`` lines: a resumed run measures the rest again."""
        kept = [json.dumps(values) + "\n" for values in read_metrics(self.path)[:lines]]
        write_text(self.path, "".join(kept))
        self.lines = len(kept)


def read_metrics(path: Path) -> list[dict]:
    """All whole lines of a log; the last one may have been cut off by a kill."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
