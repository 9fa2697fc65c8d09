"""What a folder of ``taf-fast finetune`` holds, as it was when it was read."""

import dataclasses
import json
from pathlib import Path

import yaml

from taf_fast.files import read_csv
from taf_fast.run.checkpoint import read_info
from taf_fast.run.config import FinetuneConfig, RunError
from taf_fast.run.evaluate import Prediction, read_predictions
from taf_fast.run.metrics import read_metrics
from taf_fast.run.robustness import summary
from taf_fast.run.sweep_table import read_result


@dataclasses.dataclass(frozen=True)
class Run:
    """A run; what is not in its folder is empty.

    ``environment`` and ``quarantine`` are their files' contents, ``metrics`` the lines of ``metrics.jsonl``,
    ``result`` that of :func:`taf_fast.run.sweep_table.read_result`: a run without one is unfinished.
    ``classes`` are the names in the header of its weights. ``robustness`` and ``attention`` are
    the rows of the CSV files of these names by their checkpoint, numbers as floats.
    """

    name: str
    path: Path
    config: FinetuneConfig
    environment: dict[str, str]
    metrics: list[dict]
    result: dict[str, float]
    predictions: list[Prediction]
    classes: tuple[str, ...]
    quarantine: dict[str, dict[str, str]]
    robustness: dict[str, list[dict]]
    attention: dict[str, list[dict]]

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"

    def corrupted(self) -> dict[str, float]:
        """:func:`taf_fast.run.robustness.summary` of this run's weights; empty if they were not measured."""
        names = list(self.robustness)
        if len(names) > 1:
            names = [name for name in names if Path(name).parent.name == self.path.resolve().name]
        return summary(self.robustness[names[0]]) if names else {}


def read_run(folder: Path, name: str) -> Run:
    """Read the run in ``folder``.

    Raises:
        RunError: no folder of a run, or a file in it is damaged.
        DataError, CheckpointError: its predictions or weights are damaged.
    """
    if not (folder / "config.yaml").is_file():
        raise RunError(f"{folder} is no folder of a run or a sweep: it has no config.yaml and no table.csv")
    predictions, weights = folder / "predictions.csv", folder / "model.safetensors"
    return Run(
        name,
        folder,
        config=_parsed(folder / "config.yaml", FinetuneConfig.read),
        environment=_mapping(folder / "environment.json"),
        metrics=_parsed(folder / "metrics.jsonl", read_metrics),
        result=_parsed(folder, read_result) or {},
        predictions=read_predictions(predictions) if predictions.exists() else [],
        classes=_classes(weights),
        quarantine=_mapping(folder / "quarantine.json"),
        robustness=_measured(folder / "robustness.csv", ("top1",), summary),
        attention=_measured(folder / "attention.csv", ("entropy", "top_share"), len),
    )


def _classes(weights: Path) -> tuple[str, ...]:
    info = read_info(weights) if weights.exists() else None
    return () if info is None else info.classes


def _parsed(path: Path, parse):
    try:
        return parse(path)
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise RunError(f"{path} is damaged: {error!r}") from None


def _mapping(path: Path) -> dict:
    if not path.exists():
        return {}
    values = _parsed(path, lambda path: json.loads(path.read_text(encoding="utf-8")))
    if not isinstance(values, dict):
        raise RunError(f"{path} is damaged: expected names and values, got {type(values).__name__}")
    return values


def _measured(path: Path, numbers: tuple[str, ...], use) -> dict[str, list[dict]]:
    """The rows of a CSV by checkpoint; ``use`` of those of one must not fail."""

    def parse(path: Path) -> dict[str, list[dict]]:
        found: dict[str, list[dict]] = {}
        for row in read_csv(path):
            row |= {name: float(row[name]) for name in numbers}
            found.setdefault(row["checkpoint"], []).append(row)
        for rows in found.values():
            use(rows)
        return found

    return _parsed(path, parse) if path.exists() else {}
