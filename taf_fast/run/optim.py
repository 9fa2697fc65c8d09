"""The optimiser over the parameter groups of a model's official training, and the rate of every step."""

import itertools
import warnings
from collections.abc import Iterator

import torch
from torch import nn
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    SequentialLR,
)

from taf_fast.run.config import FinetuneConfig


def build_optimizer(model: nn.Module, config: FinetuneConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over the groups of ``model.parameter_groups``.

    Each group keeps its factor of the learning rate in ``lr_scale``, see :func:`set_learning_rate`. On a GPU
    the parameters of a group move in a few launches.

    Raises:
        ValueError: ``config.fc_lr5`` for a family that has no such rule.
    """
    head_factor = config.new_head_lr_factor if config.new_head else 1.0
    groups = model.parameter_groups(config.weight_decay, config.fc_lr5, head_factor)
    optimizer: torch.optim.Optimizer
    fused = True if all(parameter.is_cuda for parameter in model.parameters()) else None
    if config.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=fused)
    else:
        optimizer = torch.optim.SGD(
            groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=fused
        )
    set_learning_rate(optimizer, config.lr)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of each group to ``lr`` times its ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def learning_rates(config: FinetuneConfig, steps_per_epoch: int, done: int = 0) -> Iterator[float]:
    """The learning rate of step after step, without end, by torch's schedulers.

    In the W steps of ``warmup_epochs`` it rises evenly from lr / (W + 1). Then it is lr at all times for
    ``schedule`` "constant"; a tenth of what it was from the beginning of each epoch in ``lr_steps`` for
    "multistep"; and half a cosine from lr to 0, at the end of the last epoch, for "cosine".

    Args:
        done: how many steps to leave out.
    """
    warmup = config.warmup_epochs * steps_per_epoch

    def decay(step: int) -> float:
        epoch = (warmup + step) // steps_per_epoch
        return 0.1 ** sum(epoch >= start for start in config.lr_steps)

    # The rate alone: groups have factors, by which it is multiplied last.
    carrier = torch.optim.SGD([nn.Parameter(torch.empty(0))], config.lr)
    schedule: LRScheduler
    if config.schedule == "cosine":
        schedule = CosineAnnealingLR(carrier, config.epochs * steps_per_epoch - warmup)
    elif config.schedule == "multistep":
        # Its rate follows from the epoch alone; MultiStepLR's is rounded at each decay.
        schedule = LambdaLR(carrier, decay)
    else:
        schedule = ConstantLR(carrier, factor=1.0)
    if warmup:
        rise = LinearLR(carrier, 1 / (warmup + 1), total_iters=warmup)
        schedule = SequentialLR(carrier, [rise, schedule], [warmup])
    for step in itertools.count():
        if step >= done:
            yield carrier.param_groups[0]["lr"]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of .lr_scheduler.step")  # nothing is optimised
            schedule.step()
