"""The contents of a run's folder at the time it was read."""

import dataclasses
from pathlib import Path

from taf_fast.errors import RunError
from taf_fast.measure.attention import ATTENTION
from taf_fast.measure.evaluate import Prediction
from taf_fast.measure.robustness import ROBUSTNESS, summary
from taf_fast.run.config import FinetuneConfig
from taf_fast.run.folder import RunFolder


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """A run under the name that the report gives it; what its folder lacks is empty.

    The other fields are as the ``read_`` methods of :class:`taf_fast.run.folder.RunFolder` return them. A run
    without ``result`` is unfinished.
    """

    name: str
    folder: RunFolder
    config: FinetuneConfig
    environment: dict[str, str]
    metrics: list[dict]
    result: dict[str, float]
    predictions: list[Prediction]
    classes: tuple[str, ...]
    quarantine: dict[str, dict[str, str]]
    robustness: dict[str, list[dict]]
    attention: dict[str, list[dict]]

    def corrupted(self, score: str = "top1") -> dict[str, float]:
        """:func:`taf_fast.measure.robustness.summary` of this run's weights; empty where not measured."""
        names = list(self.robustness)
        if len(names) > 1:
            names = [name for name in names if Path(name).parent.name == self.folder.path.resolve().name]
        return summary(self.robustness[names[0]], score) if names else {}


def run_folders(folders: list[Path]) -> list[Path]:
    """The folders of runs and sweeps among ``folders``; in place of any other folder, those in it by name.
    Each is there once, where it comes first."""
    found: dict[Path, Path] = {}
    for folder in folders:
        for inner in _run_folders(folder) or [folder]:
            found.setdefault(inner.resolve(), inner)
    return list(found.values())


def _run_folders(folder: Path) -> list[Path]:
    if is_sweep(folder) or RunFolder(folder).exists():
        return [folder]
    if not folder.is_dir():
        return []
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    return [found for path in inner for found in _run_folders(path)]


def is_sweep(folder: Path) -> bool:
    """Whether ``taf-fast sweep`` has written its table there."""
    return (folder / "table.csv").is_file()


def read_run(path: Path, name: str) -> RunRecord:
    """Read the run in the folder ``path``.

    Raises:
        RunError: not the folder of a run, or a file in it is damaged.
        DataError, CheckpointError: its predictions or weights are damaged.
    """
    folder = RunFolder(path)
    if not folder.exists():
        raise RunError(
            f"{path} is neither a run folder nor a sweep folder: it has no {folder.config.name} and no "
            "table.csv, nor has a folder in it"
        )
    return RunRecord(
        name,
        folder,
        config=folder.read_config(),
        environment=folder.read_environment(),
        metrics=folder.read_metrics(),
        result=folder.read_result() or {},
        predictions=folder.read_predictions(),
        classes=folder.read_classes(),
        quarantine=folder.read_quarantine(),
        robustness=folder.read_measured(ROBUSTNESS),
        attention=folder.read_measured(ATTENTION),
    )
