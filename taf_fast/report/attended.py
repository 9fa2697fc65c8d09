"""Clips to draw, with the attention of trained models to each."""

import torch

from taf_fast.errors import DataError, RunError
from taf_fast.measure.attention import attend
from taf_fast.report.record import RunRecord
from taf_fast.report.strips import Strip, seen
from taf_fast.run.trained import Trained, load_clip, open_trained, taken_frames


def attended_clip(models: dict[str, Trained], id: str | None) -> Strip:
    """One validation clip with the attention of each model to its class.

    Args:
        models: at least one, by name.
        id: of the clip; None for the first without a known defect.

    Raises:
        DataError: see :func:`taf_fast.run.trained.load_clip`.
        RunError: the models do not take the same frames and crop.
    """
    batches = {name: load_clip(trained.loader, id) for name, trained in models.items()}
    first, shown = next(iter(batches.items()))
    for name, batch in batches.items():
        if not torch.equal(batch.clips, shown.clips):
            raise RunError(
                f"{name} takes other frames of a clip, or another size, than {first}: draw them in pictures "
                "of their own"
            )
    (label,), (name,) = shown.labels.tolist(), shown.ids
    found = {}
    for model, trained in models.items():
        heat, scores = attend(trained.model, shown.clips.to(trained.device), shown.labels.to(trained.device))
        found[model] = seen(heat[0], scores[0], label, trained.dataset.classes)
    frames = taken_frames(models[first].loader, name)
    return Strip(name, models[first].dataset.classes[label], shown.clips[0].cpu(), frames, found)


def chosen_clips(first: RunRecord, last: RunRecord, count: int) -> list[str]:
    """The ids of up to ``count`` clips that both runs predicted.

    Clips that only the last run is right about come first, then those that only the first is right about,
    then the others, each in the order of the predictions.
    """
    before = {p.id: p.place == 0 for p in first.predictions}
    after = {p.id: p.place == 0 for p in last.predictions if p.id in before}
    order = {(False, True): 0, (True, False): 1}
    return sorted(after, key=lambda id: order.get((before[id], after[id]), 2))[:count]


def attended_clips(runs: list[RunRecord], count: int) -> list[Strip]:
    """Up to ``count`` validation clips of the first run's data with the attention of the models of all runs.

    Only these clips are probed and decoded, however large the data set.

    Raises:
        DataError: the data, or one of these clips, cannot be read.
        RunError, CheckpointError: the models do not fit the data or each other.
    """
    config = runs[0].config
    ids = chosen_clips(runs[0], runs[-1], count)
    if not ids:
        raise DataError("there are no predictions to choose clips by")
    models = {
        run.name: open_trained(
            config.data, run.folder.weights, torch.device("cpu"), manifest=config.manifest, clips=ids
        )
        for run in runs
    }
    return [attended_clip(models, id) for id in ids]
