"""An exponential moving average of a model in training."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import PARAM_LIST, AveragedModel, get_ema_multi_avg_fn


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """The average of the weights and batch statistics of ``model``, of both sets of batch norms, as its
    ``module``.

    The first ``update_parameters(model)`` copies ``model``; each later one multiplies the average by
    ``decay``, in [0,1), and adds (1 - ``decay``) times ``model``. The batches that a norm has seen, whole
    numbers, are copied.
    """
    average = get_ema_multi_avg_fn(decay)

    def update(averages: PARAM_LIST, current: PARAM_LIST, count: Tensor | int) -> None:
        if averages[0].is_floating_point():
            average(averages, current, count)
        else:
            torch._foreach_copy_(averages, current)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)
