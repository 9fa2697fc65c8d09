"""What the models of runs look at in a clip or two of their data."""

from pathlib import Path

import torch

from taf_fast.data import DataError
from taf_fast.run.trained import open_trained

from .attention import Strip, strip
from .run_folder import Run


def chosen_clips(first: Run, last: Run, count: int) -> list[str]:
    """Ids of clips that both runs predicted: first those that the last alone is right about, then those that
    the first alone is, then others; each in the order of the predictions."""
    before = {p.id: p.place == 0 for p in first.predictions}
    after = {p.id: p.place == 0 for p in last.predictions if p.id in before}
    order = {(False, True): 0, (True, False): 1}
    return sorted(after, key=lambda id: order.get((before[id], after[id]), 2))[:count]


def run_strips(runs: list[Run], count: int) -> list[Strip]:
    """Strips of ``count`` validation clips of the first run's data under the models of all runs.

    Only these clips are looked at, however large the data set.

    Raises:
        DataError: the data, or one of these clips, cannot be read.
        RunError, CheckpointError: the models do not fit the data or each other.
    """
    config = runs[0].config
    ids = chosen_clips(runs[0], runs[-1], count)
    if not ids:
        raise DataError("there are no predictions to choose clips by")
    manifest = None if config.manifest is None else Path(config.manifest)
    models = {
        run.name: open_trained(
            Path(config.data), run.weights, torch.device("cpu"), manifest=manifest, clips=ids
        )
        for run in runs
    }
    return [strip(models, id) for id in ids]
