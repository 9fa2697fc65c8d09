"""What a finished run leaves."""

import dataclasses
import statistics
from pathlib import Path

from taf_fast.files import write_json
from taf_fast.measure.evaluate import Evaluation, Prediction, score, write_predictions
from taf_fast.run.best import Best
from taf_fast.run.folder import RunFolder


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run.

    ``weights`` is the file of the model without adversarial batch norms, ``evaluation`` its scores on the
    validation videos, ``seconds_per_step`` the median and ``attacked_share`` the fraction of the training
    clips that were attacked, in [0,1]. ``best`` is the best epoch, whose model is ``best.safetensors`` in the
    run's folder, if the configuration has ``keep_best``. With ``ema``, all of this is of the averaged model.
    """

    weights: Path
    evaluation: Evaluation
    seconds_per_step: float
    attacked_share: float
    best: Best | None = None


def write_result(
    folder: RunFolder, predictions: list[Prediction], classes: tuple[str, ...], best: Best | None
) -> Result:
    """Write the predictions on the validation videos, and then the result, of a run whose weights are there.

    The times and attacks are those of all steps in the run's metrics.
    """
    steps = [line for line in folder.read_metrics() if "loss" in line]
    # The first step pays for allocations and compilation.
    seconds = statistics.median(line["step_seconds"] for line in steps[1:] or steps)
    attacked = sum(line.get("attacked", 0) for line in steps) / sum(line["clips"] for line in steps)
    write_predictions(folder.predictions, predictions, classes)
    result = Result(folder.weights, score(predictions), seconds, attacked, best)
    values = dataclasses.asdict(result) | {"weights": str(result.weights)}
    write_json(folder.result, values, indent=1)
    return result
