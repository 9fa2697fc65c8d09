"""Scores on corrupted videos."""

import dataclasses
import statistics
import zlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from taf_fast.corruptions import NAMES, SEVERITIES, corrupt
from taf_fast.data import Batch, ClipLoader
from taf_fast.run.evaluate import predict, score
from taf_fast.run.progress import Progress

CLEAN = "clean"


def robustness(
    model: nn.Module,
    loader: ClipLoader,
    device: torch.device,
    names: Sequence[str] = NAMES,
    severities: Sequence[int] = SEVERITIES,
) -> list[dict]:
    """Scores on the clips of ``loader`` as they are and under every corruption at every severity.

    Every clip is decoded once. The noise of a clip is a matter of its id: it depends neither on the batch nor
    on the ranks. These, each with its share of the clips, get the scores of all. The model is in its former
    mode afterwards.

    Args:
        loader: of evaluation, with one view.
        names, severities: see :func:`taf_fast.corruptions.corrupt`.

    Returns:
        A row for every condition, in order, the first of "clean" with severity 0: ``corruption``,
        ``severity``, ``top1`` and ``top5`` (fractions), ``loss`` (mean cross-entropy), ``clips`` (number).
    """
    conditions = [(CLEAN, 0), *((name, severity) for name in names for severity in severities)]
    with Progress("robustness", len(conditions) * len(loader)) as progress:
        predictions = predict(model, _conditions(loader, device, conditions, progress), device)
    of_condition = {condition: [] for condition in conditions}
    for prediction in predictions:
        *condition, _ = prediction.id
        of_condition[tuple(condition)].append(prediction)
    return [
        {"corruption": name, "severity": severity} | dataclasses.asdict(score(of_condition[name, severity]))
        for name, severity in conditions
    ]


def _conditions(
    loader: ClipLoader, device: torch.device, conditions: list[tuple[str, int]], progress: Progress
) -> Iterator[Batch]:
    """Every batch under each condition, which the ids then start with."""
    for batch in loader:
        clips = batch.clips.to(device)
        seeds = [zlib.crc32(name.encode()) for name in batch.ids]
        done = (loader.iteration - 1) * len(conditions)
        for number, (name, severity) in enumerate(conditions, start=1):
            seen = clips if name == CLEAN else corrupt(clips, name, severity, seeds)
            ids = [(name, severity, clip) for clip in batch.ids]
            yield dataclasses.replace(batch, clips=seen, ids=ids)
            progress.update(done + number, f"{name} {severity}")


def summary(rows: list[dict]) -> dict[str, float]:
    """Top-1 by columns of the paper's Table 3: "clean", the mean over severities of every corruption in
    ``rows`` (those of :func:`robustness`), and the "mean" of these."""
    scores = {}
    for row in rows:
        scores.setdefault(row["corruption"], []).append(row["top1"])
    columns = {name: statistics.fmean(values) for name, values in scores.items()}
    return columns | {"mean": statistics.fmean(v for name, v in columns.items() if name != CLEAN)}
