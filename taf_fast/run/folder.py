"""The folder of a run: the name of every file in it, and how each is read."""

import contextlib
import dataclasses
import shutil
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from taf_fast.errors import RunError
from taf_fast.files import held, make_folder, remove_temporaries, write_atomically, writing
from taf_fast.measure.attention import ATTENTION
from taf_fast.measure.base import Measure
from taf_fast.measure.evaluate import Prediction, columns_of, read_predictions
from taf_fast.measure.robustness import ROBUSTNESS
from taf_fast.parsing import parse_json
from taf_fast.run.checkpoint import WEIGHTS, read_info
from taf_fast.run.config import FinetuneConfig
from taf_fast.run.metrics import read_metrics

T = TypeVar("T")

# The errors of reading damaged files.
_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)

#: What can be measured of a finished run beyond its scores.
MEASURES = {measure.name: measure for measure in (ROBUSTNESS, ATTENTION)}


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The files that ``taf-fast finetune`` and the measures leave in the folder of a run.

    Every ``read_`` method raises a RunError, DataError or CheckpointError that names a damaged file. A file
    that does not exist reads as empty, except for the configuration.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The values of the run, YAML."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions and machine, JSON."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """The measurements of every step and epoch, a JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def wandb_id(self) -> Path:
        """The name that Weights & Biases knows the run by."""
        return self.path / "wandb_id.txt"

    @property
    def state(self) -> Path:
        """All that a stopped run needs to go on."""
        return self.path / "state.safetensors"

    @property
    def quarantine(self) -> Path:
        """The clips left out and why, by split, JSON."""
        return self.path / "quarantine.json"

    @property
    def weights(self) -> Path:
        """The trained model, without adversarial batch norms."""
        return self.path / WEIGHTS

    @property
    def best(self) -> Path:
        """The model after the best epoch so far, as ``weights``."""
        return self.path / "best.safetensors"

    @property
    def predictions(self) -> Path:
        """The final model's predictions on the validation videos, CSV."""
        return self.path / "predictions.csv"

    @property
    def result(self) -> Path:
        """The final scores, JSON; written last."""
        return self.path / "result.json"

    @property
    def robustness(self) -> Path:
        """Scores on corrupted videos, CSV."""
        return self.measured(ROBUSTNESS)

    @property
    def attention(self) -> Path:
        """Spread of attention over the frames, CSV."""
        return self.measured(ATTENTION)

    @property
    def lock(self) -> Path:
        """There while a process works on the run."""
        return self.path / "run.lock"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out of an existing folder for the block; FileError if one works there."""
        with held(self.lock, f"the run in {self.path}"):
            remove_temporaries(self.path)
            yield

    def measured(self, measure: Measure) -> Path:
        """The CSV of a measure."""
        return self.path / f"{measure.name}.csv"

    def set_aside(self, epochs: int) -> None:
        """Move the results of a run that ended after ``epochs`` epochs and now goes on into a folder of their
        own, and copy its best weights there."""
        results = [self.weights, self.predictions, columns_of(self.predictions), self.result]
        results = [path for path in (*results, self.robustness, self.attention) if path.exists()]
        if not results:
            return
        aside = self.path / f"after_epoch_{epochs}"
        make_folder(aside)
        if self.best.exists():
            write_atomically(aside / self.best.name, lambda copy: shutil.copyfile(self.best, copy))
        for path in results:
            with writing(path):
                path.rename(aside / path.name)

    def exists(self) -> bool:
        """Whether a run has begun here."""
        return self.config.is_file()

    def left_without_config(self) -> str | None:
        """The name of a file of a run, other than its configuration, that is here; None if there is none."""
        files = (self.state, self.weights, self.best, self.metrics, self.predictions, self.result)
        return next((file.name for file in files if file.exists()), None)

    def read_config(self) -> FinetuneConfig:
        """The values of the run; RunError where there are none."""
        return _parsed(self.config, FinetuneConfig.read)

    def read_environment(self) -> dict[str, str]:
        """Versions and machine by their names."""
        return _mapping(self.environment)

    def read_metrics(self) -> list[dict]:
        """The whole lines of the metrics, in order; a last line cut off by a kill is left out."""
        return _parsed(self.metrics, read_metrics)

    def read_quarantine(self) -> dict[str, dict[str, str]]:
        """Split -> id of a clip left out -> reason."""
        found = _mapping(self.quarantine)
        for split, clips in found.items():
            if not isinstance(clips, dict) or not all(isinstance(reason, str) for reason in clips.values()):
                raise RunError(f"{self.quarantine} is damaged: expected a reason for every clip of {split}")
        return found

    def read_classes(self) -> tuple[str, ...]:
        """The names of the classes by label, from the header of the weights."""
        info = read_info(self.weights) if self.weights.exists() else None
        return () if info is None else info.classes

    def read_predictions(self) -> list[Prediction]:
        """The predictions on the validation videos."""
        return read_predictions(self.predictions) if self.predictions.exists() else []

    def read_measured(self, measure: Measure) -> dict[str, list[dict]]:
        """Checkpoint -> its rows of a measure."""
        path = self.measured(measure)
        return measure.read(path) if path.exists() else {}

    def read_result(self) -> dict[str, float] | None:
        """The numbers of a finished run; None if it is unfinished or its result is damaged.

        ``top1``, ``top5`` and ``attacked_share`` are fractions in [0,1]; ``val_loss`` and ``train_loss`` are
        mean cross-entropies, the latter of the clean clips over the steps of the last epoch, missing for
        augmentations that train on no clean clip; ``seconds_per_step`` is a median.
        """
        try:
            result = parse_json(self.result.read_text(encoding="utf-8"))
            scores = result["evaluation"]
            values = {"top1": scores["top1"], "top5": scores["top5"], "val_loss": scores["loss"]}
            values |= {name: result[name] for name in ("attacked_share", "seconds_per_step")}
            numbers = {name: float(value) for name, value in values.items()}
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not self.weights.is_file():
            return None
        steps = [line for line in self.read_metrics() if "clean_loss" in line]
        last = [line["clean_loss"] for line in steps if line["epoch"] == steps[-1]["epoch"]]
        return numbers | ({"train_loss": statistics.fmean(last)} if last else {})


def _parsed(path: Path, parse: Callable[[Path], T]) -> T:
    try:
        return parse(path)
    except _DAMAGE as error:
        raise RunError(f"{path} is damaged: {error!r}") from None


def _mapping(path: Path) -> dict:
    if not path.exists():
        return {}
    values = _parsed(path, lambda path: parse_json(path.read_text(encoding="utf-8")))
    if not isinstance(values, dict):
        raise RunError(f"{path} is damaged: expected names and values, got {type(values).__name__}")
    return values
