"""One view of every model: the features the CAM is taken of, and the logits that follow from them."""

from typing import Any

import torch
from torch import Tensor, nn


def adapt(module: nn.Module, layer: str, num_segments: int, mean=None, std=None) -> "AdaptedModel":
    """Wrap any video classifier so that the augmentation and the step can use it.

    Args:
        module: takes clips [B,T,3,H,W], returns logits [B,classes] (a tensor, or an object with
            ``logits``). Its parameters stay its own: optimise and save ``module`` as before.
        layer: dotted name of the submodule whose output the CAM is taken of, usually the last
            convolutional stage. Its output is [B*T,C,h,w] or [B,C,T,h,w].
        num_segments: frames per clip, T.
        mean, std: per channel [3], of pixels in [0,1], that the clips are normalised with. Default:
            those of ``module``, and where it has none, clips in pixel units.

    Raises:
        ValueError: no such layer, or num_segments below 1.
    """
    if num_segments < 1:
        raise ValueError(f"num_segments must be at least 1, got {num_segments}")
    names = dict(module.named_modules())
    if not layer or layer not in names:
        close = ", ".join(name for name in names if name and "." not in name)
        raise ValueError(f"the model has no layer {layer!r}, expected a dotted name below one of: {close}")
    return AdaptedModel(module, layer, num_segments, mean, std)


class AdaptedModel(nn.Module):
    """What :func:`adapt` returns. Calling it calls the wrapped module."""

    def __init__(self, module: nn.Module, layer: str, num_segments: int, mean, std):
        super().__init__()
        self.module = module
        self.layer, self.num_segments = layer, num_segments
        self.mean = getattr(module, "mean", None) if mean is None else mean
        self.std = getattr(module, "std", None) if std is None else std

    def forward(self, clips: Tensor) -> Tensor:
        return _logits(self.module(clips))

    def features(self, clips: Tensor) -> Tensor:
        """Clips [B,T,3,H,W] -> the layer's output as [B,T,C,h,w]."""
        return self.features_and_logits(clips)[0]

    def features_and_logits(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Clips [B,T,3,H,W] -> ([B,T,C,h,w], [B,classes]) of one forward.

        Raises:
            ValueError: the layer's output has no frame axis of length T, or the layer did not run.
        """
        outputs: list[Any] = []

        # The rest of the model must follow from exactly the tensor handed out here, or the gradient
        # of the logits with respect to it would be zero: hence the view that replaces the output.
        def hand_out(_layer, _args, output):
            if not isinstance(output, Tensor):
                raise ValueError(f"layer {self.layer!r} returned {type(output).__name__}, expected a tensor")
            features = _frames_first(output, clips.shape[0], self.num_segments, self.layer)
            outputs.append(features)
            return _frames_back(features, output.dim())

        hook = self.module.get_submodule(self.layer).register_forward_hook(hand_out)
        try:
            logits = _logits(self.module(clips))
        finally:
            hook.remove()
        if len(outputs) != 1:
            raise ValueError(f"layer {self.layer!r} ran {len(outputs)} times in one forward, expected once")
        return outputs[0], logits


def features_and_logits(model: nn.Module, clips: Tensor) -> tuple[Tensor, Tensor]:
    """One forward of ``model``: features [B,T,C,h,w] and the logits [B,classes] computed from them.

    Raises:
        ValueError: the model has no ``features`` and ``head``.
    """
    if hasattr(model, "features_and_logits"):
        return model.features_and_logits(clips)
    if not (hasattr(model, "features") and hasattr(model, "head")):
        raise ValueError(
            f"{type(model).__name__} has no .features and .head: wrap it with "
            "taf_fast.adapt(model, layer=..., num_segments=...)"
        )
    features = model.features(clips)
    return features, model.head(features)


def _frames_first(output: Tensor, batch: int, frames: int, layer: str) -> Tensor:
    if output.dim() == 4 and output.shape[0] == batch * frames:
        return output.unflatten(0, (batch, frames))
    if output.dim() == 5 and output.shape[0] == batch and output.shape[2] == frames:
        return output.transpose(1, 2)
    raise ValueError(
        f"layer {layer!r} returned {list(output.shape)}, expected [B*T,C,h,w] = [{batch * frames},C,h,w] "
        f"or [B,C,T,h,w] = [{batch},C,{frames},h,w]"
    )


def _frames_back(features: Tensor, dim: int) -> Tensor:
    return features.flatten(0, 1) if dim == 4 else features.transpose(1, 2)


def _logits(output) -> Tensor:
    logits = getattr(output, "logits", output)
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2:
        raise ValueError(f"the model returned {type(output).__name__}, expected logits [B,classes]")
    return logits
