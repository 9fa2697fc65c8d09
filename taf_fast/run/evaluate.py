"""Top-1, top-5 and loss through the clean path."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

from taf_fast.clips import to_model_input
from taf_fast.data import ClipLoader
from taf_fast.run import ranks


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Fractions in [0,1]; ``loss`` is the mean cross-entropy over ``clips`` videos."""

    top1: float
    top5: float
    loss: float
    clips: int


@torch.no_grad()
def evaluate(model: nn.Module, loader: ClipLoader, device: torch.device) -> Evaluation:
    """Evaluate on all clips of ``loader`` that decode, by the mean of the logits of their views.

    Ranks, each with its share of the clips, get the scores of all. The model is in its former mode
    afterwards.
    """
    was_training = model.training
    model.eval()
    correct = torch.zeros(2, dtype=torch.int64)
    loss, clips = 0.0, 0
    with ranks.together():
        for batch in loader:
            labels = batch.labels.to(device)
            logits = model(to_model_input(model, batch.clips.to(device)))
            logits = logits.unflatten(0, (len(labels), -1)).mean(1)
            hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
            correct += torch.stack([hits[:, 0].sum(), hits.sum()]).cpu()
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            clips += len(labels)
    model.train(was_training)
    *correct, loss, clips = ranks.total([*correct.tolist(), loss, clips])
    top1, top5 = (torch.tensor(correct) / clips).tolist()
    return Evaluation(top1, top5, loss / clips, int(clips))
