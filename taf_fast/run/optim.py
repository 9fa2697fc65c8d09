"""SGD with TSM's parameter groups."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def build_sgd(
    model: nn.Module, lr: float, momentum: float, weight_decay: float, boost_classifier: bool
) -> torch.optim.SGD:
    """SGD over all parameters, in the groups of TSM's official training.

    Weights: lr, decayed. Biases: 2 lr, not decayed. Batch norm: lr, not decayed. The classifier
    ``fc`` trains faster when it starts from noise: weight 5 lr, bias 10 lr.

    Args:
        boost_classifier: whether it does, that is, whether the model was not loaded from a
            checkpoint of the same classes. Otherwise ``fc`` is a layer like the others.

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
            if boost_classifier and module_name.split(".")[-1] == "fc":
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
