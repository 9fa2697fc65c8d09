"""Scores on corrupted videos."""

import dataclasses
import statistics
import zlib
from collections.abc import Sequence

import torch
from torch import nn

from taf_fast.corruptions import NAMES, SEVERITIES, corrupt
from taf_fast.data import ClipLoader
from taf_fast.measure.base import Measure
from taf_fast.measure.evaluate import Prediction, evaluating, predict_batch, score
from taf_fast.process import ranks
from taf_fast.process.progress import Progress

CLEAN = "clean"


def robustness(
    model: nn.Module,
    loader: ClipLoader,
    device: torch.device,
    names: Sequence[str] = NAMES,
    severities: Sequence[int] = SEVERITIES,
) -> list[dict]:
    """Scores on the clips of ``loader`` as they are and under every corruption at every severity.

    Every clip is decoded once. A clip's noise depends on its id alone, not on its batch or rank. Ranks, each
    with its share of the clips, all return the scores over all clips. The model returns to its former mode.

    Args:
        model: takes clips [B,T,3,H,W] and returns logits [B,classes]; on ``device``.
        loader: an evaluation loader with one view.
        names: of corruptions, see :func:`taf_fast.corruptions.corrupt`.
        severities: each in 1..5.

    Returns:
        A row for every condition, in order, "clean" with severity 0 first: ``corruption``, ``severity``,
        ``top1`` and ``top5`` (fractions in [0,1]), ``loss`` (mean cross-entropy), ``clips`` (number).

    Raises:
        DataError: too many clips cannot be decoded.
    """
    conditions = [(CLEAN, 0), *((name, severity) for name in names for severity in severities)]
    found: dict[tuple[str, int], dict[str, Prediction]] = {condition: {} for condition in conditions}
    total = len(conditions) * len(loader)
    with Progress("robustness", total) as progress, evaluating(model), ranks.together():
        for batch in loader:
            clips = batch.clips.to(device)
            seeds = [zlib.crc32(id.encode()) for id in batch.ids]
            done = (loader.iteration - 1) * len(conditions)
            for number, (name, severity) in enumerate(conditions, start=1):
                seen = clips if name == CLEAN else corrupt(clips, name, severity, seeds)
                predictions = predict_batch(model, dataclasses.replace(batch, clips=seen), device)
                found[name, severity] |= {p.id: p for p in predictions}
                progress.update(done + number, f"{name} {severity}")
    scores = {condition: score(list(ranks.union(own).values())) for condition, own in found.items()}
    return [
        {"corruption": name, "severity": severity} | dataclasses.asdict(scored)
        for (name, severity), scored in scores.items()
    ]


def summary(rows: list[dict], score: str = "top1") -> dict[str, float]:
    """Top-1, or top-5, by the columns of the paper's Table 3.

    Args:
        rows: of :func:`robustness`, for at least one corruption.
        score: ``"top1"`` or ``"top5"``.

    Returns:
        Fractions in [0,1]: the mean over severities of "clean" and of every corruption in ``rows``, and
        "mean", the mean of the corruptions.
    """
    scores: dict[str, list[float]] = {}
    for row in rows:
        scores.setdefault(row["corruption"], []).append(row[score])
    columns = {name: statistics.fmean(values) for name, values in scores.items()}
    return columns | {"mean": statistics.fmean(v for name, v in columns.items() if name != CLEAN)}


ROBUSTNESS = Measure(
    name="robustness",
    columns=("top1", "top5"),
    rows=robustness,
    numbers=lambda rows: {"robustness_top1": summary(rows)["mean"]},
)
