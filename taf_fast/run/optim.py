"""SGD over the groups a model's official training has."""

import torch
from torch import nn


def build_sgd(
    model: nn.Module, lr: float, momentum: float, weight_decay: float, fc_lr5: bool, nesterov: bool
) -> torch.optim.SGD:
    """SGD over ``model.parameter_groups``; a group's factor of the learning rate is kept in its
    ``lr_scale``, :func:`set_learning_rate` applies it."""
    groups = model.parameter_groups(weight_decay, fc_lr5)
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov)
    set_learning_rate(optimizer, lr)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
