"""SGD with TSM's parameter groups."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def build_sgd(
    model: nn.Module, lr: float, momentum: float, weight_decay: float, fc_lr5: bool
) -> torch.optim.SGD:
    """SGD over all parameters, in the groups of TSM's official training.

    Weights: lr, decayed. Biases: 2 lr, not decayed. Batch norm: lr, not decayed. With ``fc_lr5`` the
    classifier ``fc`` has 5 times that, weight 5 lr and bias 10 lr: for one that starts from noise
    on a trained trunk. TSM's training leaves it out when it tunes a model on the data set it is of.

    The group's factor is kept in its ``lr_scale``; :func:`set_learning_rate` applies it.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            scale, decay = 1.0, weight_decay
            if isinstance(module, _BatchNorm):
                decay = 0.0
            elif name == "bias":
                scale, decay = 2.0, 0.0
            if fc_lr5 and module_name.split(".")[-1] == "fc":
                scale *= 5
            groups.setdefault((scale, decay), []).append(parameter)
    return torch.optim.SGD(
        [
            {"params": parameters, "lr": lr * scale, "lr_scale": scale, "weight_decay": decay}
            for (scale, decay), parameters in groups.items()
        ],
        momentum=momentum,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
