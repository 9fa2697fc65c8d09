"""Any video classifier as a model with features: hooks on one layer hand them out."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from taf_fast.models.contract import offered
from taf_fast.models.layout import Layout
from taf_fast.models.recomputation import recomputed_within


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
        module: the classifier. Its parameters stay its own: optimise and save ``module`` as before. Of a
            compiled one, the plain module is taken.
        layer: dotted name of the submodule whose output the CAM is taken of, usually the last
            convolutional stage. If it returns a tuple or a list, the first tensor counts.
        num_segments: frames per clip, T.
        mean, std: per channel [3], the normalisation of the clips, for pixels in [0,1]. Default: those
            of ``module``; if it has none, clips are in pixel units.
        layout: the layout of the layer's output, in the letters B, T, C and either h and w or n (tokens
            per frame), products in the order of memory: ``"[B,T*n,C]"`` for tokens frame by frame,
            ``"[B,n*T,C]"`` for the frames of one patch side by side, ``"[B,1+T*n,C]"`` for a class
            token in front, ``"[B,C,T/2,h,w]"`` for half as many frames as the clip has (each of the
            clip's frames then gets the features of the one it is merged into). Default:
            [B*T,C,h,w], [B,C,T,h,w], [B,T,C,h,w] or [B,T*n,C], whichever fits. A shape does not show
            whether tokens are in another order or belong to merged frames: give the layout of such a
            model. (If a transformers config has tubelets, the layout of tokens is not guessed.)
        call: ``call(module, clips)`` with clips [B,T,3,H,W], for a module that takes them in another
            form: ``lambda module, clips: module(clips.transpose(1, 2))``. Default:
            ``module(clips)``. Returns logits [B,classes], a tensor or an object with ``logits``.

    Raises:
        ValueError: there is no such layer, num_segments is below 1, or the layout cannot be read, does not
            divide T, or leaves one frame.
    """
    if num_segments < 1:
        raise ValueError(f"num_segments must be at least 1, got {num_segments}")
    compiled = offered(module, "_orig_mod")
    if compiled is not None:  # the hooks would not be seen: TAFStep compiles what can be
        module = compiled
    if "_orig_mod" in layer.split("."):
        raise ValueError(
            f"layer {layer!r} is within a module that torch.compile made, which would not see its hook: "
            "adapt the plain module, TAFStep compiles it"
        )
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
        self.layer = layer
        self.num_segments = num_segments
        self.call = call
        self.mean = offered(module, "mean") if mean is None else mean
        self.std = offered(module, "std") if std is None else std
        texts = _default_layouts(module) if layout is None else (layout,)
        self.layouts = [Layout(text, num_segments) for text in texts]
        self._logits_depend = False

    def forward(self, clips: Tensor) -> Tensor:
        output = self.module(clips) if self.call is None else self.call(self.module, clips)
        logits = getattr(output, "logits", output)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[0] != clips.shape[0]:
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

        Tokens form a square if their number is a square, else [n,1].

        Raises:
            ValueError: the clips have another T, the layer's output does not fit its layout, the layer did
                not run exactly once, or the logits do not depend on it.
        """
        if clips.dim() != 5 or clips.shape[1] != self.num_segments or not len(clips):
            raise ValueError(
                f"expected clips [B,T,3,H,W] with B at least 1 and T={self.num_segments}, as given to "
                f"taf_fast.adapt, got {list(clips.shape)}"
            )
        handed_out: list[tuple[Tensor, Tensor]] = []
        with self._handing_out(handed_out, len(clips)):
            logits = self(clips)
        if len(handed_out) != 1:
            raise ValueError(
                f"layer {self.layer!r} ran {len(handed_out)} times in one forward, expected once"
            )
        ((features, class_tokens),) = handed_out
        if not self._logits_depend and features.requires_grad and logits.requires_grad:
            self._logits_depend = self._check_logits_depend(logits, features, class_tokens)
        return features, logits

    @contextmanager
    def _handing_out(self, into: list[tuple[Tensor, Tensor]], batch: int) -> Iterator[None]:
        """Within this context the layer appends (features, class tokens) to ``into``.

        The rest of the model must be computed from exactly the tensor handed out, or the gradient of the
        logits with respect to it would be zero. So this tensor replaces the layer's output.
        """

        def attention_of_second_order() -> None:
            # Fused attention has no second derivative. Nothing before the layer needs one.
            if torch.is_grad_enabled():
                until_the_end.enter_context(sdpa_kernel(SDPBackend.MATH))

        def hand_out(_layer, _args, output):
            attention_of_second_order()
            first = output[0] if type(output) in (tuple, list) and output else output
            if not isinstance(first, Tensor):
                raise ValueError(
                    f"layer {self.layer!r} returned {type(output).__name__}, "
                    "expected a tensor, or a tuple that begins with one"
                )
            layout = self._layout_of(first, batch)
            features, class_tokens = layout.split(first, batch)
            into.append((features, class_tokens))
            # A copy, because the following layers may write into it.
            replacement = layout.join(features, class_tokens).clone()
            return replacement if output is first else type(output)((replacement, *output[1:]))

        with ExitStack() as until_the_end:
            hook = self.module.get_submodule(self.layer).register_forward_hook(hand_out)
            until_the_end.callback(hook.remove)
            if into:
                attention_of_second_order()
            # What is recomputed after the layer finds its tensors in a list, as it did in the forward.
            again = lambda: partial(self._handing_out, list(into), batch)  # noqa: E731
            until_the_end.enter_context(recomputed_within(again))
            yield

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
        """Raise ValueError if the CAM would be zero for all clips; False if that cannot be told yet."""
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
        return False  # All is zero, as it is for a last layer that starts at zero.


def _default_layouts(module: nn.Module) -> list[str]:
    layouts = ["[B*T,C,h,w]", "[B,C,T,h,w]", "[B,T,C,h,w]"]
    # In the configs of transformers' video models: an int, or the size in time, height and width.
    tubelet = getattr(getattr(module, "config", None), "tubelet_size", 1)
    merged = tubelet[0] if isinstance(tubelet, (tuple, list)) else tubelet
    return layouts if merged > 1 else [*layouts, "[B,T*n,C]"]
