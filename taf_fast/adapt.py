"""One view of every model: the features the CAM is taken of, and the logits that follow from them."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from taf_fast.layout import Layout


def adapt(
    module: nn.Module,
    layer: str,
    num_segments: int,
    mean=None,
    std=None,
    layout: str | None = None,
    call: Callable[[nn.Module, Tensor], Any] | None = None,
) -> "AdaptedModel":
    """Wrap any video classifier so that the augmentation and the step can use it.

    Args:
        module: the classifier. Its parameters stay its own: optimise and save ``module`` as before.
        layer: dotted name of the submodule whose output the CAM is taken of, usually the last
            convolutional stage. Of a tuple or list it returns, the first tensor is taken.
        num_segments: frames per clip, T.
        mean, std: per channel [3], of pixels in [0,1], that the clips are normalised with. Default:
            those of ``module``, and where it has none, clips in pixel units.
        layout: how the layer's output lies, in the letters B, T, C and either h and w or n (tokens
            per frame), products in the order of memory: ``"[B,T*n,C]"`` for tokens frame by frame,
            ``"[B,n*T,C]"`` for the frames of one patch side by side, ``"[B,1+T*n,C]"`` for a class
            token in front, ``"[B,C,T/2,h,w]"`` for half as many frames as the clip has (each of the
            clip's frames then gets the features of the one it is merged into). Default:
            [B*T,C,h,w], [B,C,T,h,w], [B,T,C,h,w] or [B,T*n,C], whichever fits. A shape does not show
            tokens in another order or of merged frames: say so for such a model. (Where a transformers
            config has tubelets, tokens are not guessed.)
        call: how the model is called, ``call(module, clips)`` with clips [B,T,3,H,W], for one that
            takes them otherwise: ``lambda module, clips: module(clips.transpose(1, 2))``. Default:
            ``module(clips)``. Returns logits [B,classes], a tensor or an object with ``logits``.

    Raises:
        ValueError: no such layer, num_segments below 1, or a layout that cannot be read, that T is no
            multiple for, or that leaves one frame.
    """
    if num_segments < 1:
        raise ValueError(f"num_segments must be at least 1, got {num_segments}")
    names = dict(module.named_modules())
    if not layer or layer not in names:
        close = ", ".join(name for name in names if name and "." not in name)
        raise ValueError(f"the model has no layer {layer!r}, expected a dotted name below one of: {close}")
    return AdaptedModel(module, layer, num_segments, mean, std, layout, call)


class AdaptedModel(nn.Module):
    """What :func:`adapt` returns. Calling it with clips [B,T,3,H,W] gives the wrapped module's logits."""

    def __init__(self, module: nn.Module, layer: str, num_segments: int, mean, std, layout, call):
        super().__init__()
        self.module = module
        self.layer, self.num_segments, self.call = layer, num_segments, call
        self.mean = getattr(module, "mean", None) if mean is None else mean
        self.std = getattr(module, "std", None) if std is None else std
        texts = _default_layouts(module) if layout is None else (layout,)
        self.layouts = [Layout(text, num_segments) for text in texts]
        self._logits_depend = False

    def forward(self, clips: Tensor) -> Tensor:
        output = self.module(clips) if self.call is None else self.call(self.module, clips)
        logits = getattr(output, "logits", output)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(clips):
            found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"the model returned {found}, expected logits [B,classes] with B={len(clips)}: "
                "call=... says how to get them"
            )
        return logits

    def features(self, clips: Tensor) -> Tensor:
        """Clips [B,T,3,H,W] -> the layer's output as [B,T,C,h,w]."""
        return self.features_and_logits(clips)[0]

    def features_and_logits(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Clips [B,T,3,H,W] -> ([B,T,C,h,w], [B,classes]) of one forward.

        Tokens lie as a square where their number is one, else as [n,1].

        Raises:
            ValueError: clips of another T, a layer whose output does not fit its layout or that did
                not run exactly once, or logits that do not depend on it.
        """
        if clips.dim() != 5 or clips.shape[1] != self.num_segments or not len(clips):
            raise ValueError(
                f"expected clips [B,T,3,H,W] with B at least 1 and T={self.num_segments}, as given to "
                f"taf_fast.adapt, got {list(clips.shape)}"
            )
        handed_out: list[tuple[Tensor, Tensor]] = []

        # The rest of the model must follow from exactly the tensor handed out here, or the gradient
        # of the logits with respect to it would be zero: hence the tensor that replaces the output.
        def hand_out(_layer, _args, output):
            if torch.is_grad_enabled():
                # Fused attention has no second derivative. What comes before the layer needs none.
                until_the_end.enter_context(sdpa_kernel(SDPBackend.MATH))
            first = output[0] if type(output) in (tuple, list) and output else output
            if not isinstance(first, Tensor):
                raise ValueError(
                    f"layer {self.layer!r} returned {type(output).__name__}, "
                    "expected a tensor, or a tuple that begins with one"
                )
            layout = self._layout_of(first, len(clips))
            features, class_tokens = layout.split(first, len(clips))
            handed_out.append((features, class_tokens))
            # A copy, because what follows may write into it.
            replacement = layout.join(features, class_tokens).clone()
            return replacement if output is first else type(output)((replacement, *output[1:]))

        hook = self.module.get_submodule(self.layer).register_forward_hook(hand_out)
        with ExitStack() as until_the_end:
            until_the_end.callback(hook.remove)
            logits = self(clips)
        if len(handed_out) != 1:
            raise ValueError(
                f"layer {self.layer!r} ran {len(handed_out)} times in one forward, expected once"
            )
        ((features, class_tokens),) = handed_out
        if not self._logits_depend and features.requires_grad and logits.requires_grad:
            self._logits_depend = self._check_logits_depend(logits, features, class_tokens)
        return features, logits

    def _layout_of(self, output: Tensor, batch: int) -> "Layout":
        fitting = [layout for layout in self.layouts if layout.fits(output.shape, batch)]
        if len(fitting) == 1:
            return fitting[0]
        found = f"layer {self.layer!r} returned {list(output.shape)}"
        known = f"with B={batch} and T={self.num_segments}"
        if fitting:
            both = " and ".join(layout.text for layout in fitting)
            raise ValueError(f"{found}, which fits {both} {known}: choose with layout=...")
        raise ValueError(
            f"{found}, expected {' or '.join(layout.text for layout in self.layouts)} {known}: name a layer "
            "that keeps the frames apart, or say how its output lies, such as layout='[B,C,T/2,h,w]' for "
            "merged frames, '[B,1+T*n,C]' or '[B,n*T,C]' for other tokens"
        )

    def _check_logits_depend(self, logits: Tensor, features: Tensor, class_tokens: Tensor) -> bool:
        """Raise ValueError where the CAM would be zero for all clips; False if that cannot be told."""
        inputs = (features, class_tokens)
        of_frames, of_class = torch.autograd.grad(
            logits[:, 0].sum(), inputs, retain_graph=True, allow_unused=True
        )
        if of_frames is None:
            raise ValueError(
                f"the logits do not depend on layer {self.layer!r}, expected one they follow from"
            )
        if of_frames.any():
            return True
        if of_class is not None and of_class.any():
            raise ValueError(
                f"after layer {self.layer!r} the logits depend on the class token alone, expected a layer "
                "before the last attention, such as that block's first norm"
            )
        return False  # All is zero, as with a last layer that starts at zero.


def features_and_logits(model: nn.Module, clips: Tensor) -> tuple[Tensor, Tensor]:
    """One forward of ``model``: features [B,T,C,h,w] and the logits [B,classes] computed from them.

    Raises:
        ValueError: the model has no ``features`` and ``head``.
    """
    if hasattr(model, "features_and_logits"):
        return model.features_and_logits(clips)
    if not has_stages(model):
        raise ValueError(
            f"{type(model).__name__} has no .features and .head: wrap it with "
            "taf_fast.adapt(model, layer=..., num_segments=...)"
        )
    parts = stages(model, clips)
    return parts[0], model.head(*parts)


def has_stages(model: nn.Module) -> bool:
    """Whether ``model`` has a ``head`` and ``features``, or ``stages`` with more for the head, before it."""
    return hasattr(model, "head") and (hasattr(model, "stages") or hasattr(model, "features"))


def stages(model: nn.Module, clips: Tensor) -> tuple[Tensor, ...]:
    """Clips -> the arguments of ``model.head``: the features [B,T,C,h,w] first."""
    return model.stages(clips) if hasattr(model, "stages") else (model.features(clips),)


def _default_layouts(module: nn.Module) -> list[str]:
    layouts = ["[B*T,C,h,w]", "[B,C,T,h,w]", "[B,T,C,h,w]"]
    # The configs of transformers' video models: an int, or a size in time, height and width.
    tubelet = getattr(getattr(module, "config", None), "tubelet_size", 1)
    merged = tubelet[0] if isinstance(tubelet, (tuple, list)) else tubelet
    return layouts if merged > 1 else [*layouts, "[B,T*n,C]"]
