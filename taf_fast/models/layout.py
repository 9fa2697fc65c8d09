"""Shapes as text: which dimensions of a layer's output hold the frames."""

from math import isqrt, prod

import torch
from torch import Tensor


class Layout:
    """A parsed layout such as ``"[B,1+T/2*n,C]"``, see :func:`taf_fast.adapt`."""

    def __init__(self, text: str, num_segments: int):
        """Parse ``text``. Raise ValueError if it is not a layout or its frames do not fit num_segments."""
        self.text = text
        self.merged = 1
        self.leading = 0
        self.dims: list[list[str]] = []
        for dim in text.replace(" ", "").removeprefix("[").removesuffix("]").split(","):
            leading, _, product = dim.rpartition("+")
            factors = product.split("*")
            for i, factor in enumerate(factors):
                if factor.startswith("T/") and factor[2:].isdecimal():
                    factors[i], self.merged = "T", int(factor[2:])
            if leading.isdecimal() and "n" in factors:
                self.leading, leading = int(leading), ""
            inferred = [factor for factor in factors if factor not in ("B", "T")]
            if leading or len(inferred) > 1:
                raise ValueError(_unreadable(text))
            self.dims.append(factors)
        self.axes = [factor for factors in self.dims for factor in factors]
        self.order = ["B", "T", "C", "n"] if "n" in self.axes else ["B", "T", "C", "h", "w"]
        if sorted(self.axes) != sorted(self.order) or self.merged < 1:
            raise ValueError(_unreadable(text))
        self.num_frames = num_segments // self.merged
        if num_segments % self.merged or (self.merged > 1 and self.num_frames < 2):
            raise ValueError(
                f"layout {text} needs a num_segments that is a multiple of {self.merged} and leaves at "
                f"least 2 frames to choose from, got {num_segments}"
            )

    def fits(self, shape: torch.Size, batch: int) -> bool:
        """Whether an output of ``shape``, for ``batch`` clips, can have this layout."""
        return len(shape) == len(self.dims) and all(
            prod(self._sizes(factors, size, batch)) == size > 0
            for factors, size in zip(self.dims, self._without_class_tokens(shape), strict=True)
        )

    def split(self, output: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Split an output into the features [B,T,C,h,w] of the frames and its class tokens, if any."""
        dim = self._token_dim()
        class_tokens, frames = output.tensor_split([self.leading], dim)
        sizes = map(self._sizes, self.dims, frames.shape, [batch] * frames.dim())
        frames = frames.reshape([size for group in sizes for size in group])
        frames = frames.permute([self.axes.index(axis) for axis in self.order])
        if "n" in self.order:
            side = isqrt(frames.shape[3])
            frames = frames.unflatten(3, (side, side) if side**2 == frames.shape[3] else (-1, 1))
        return frames.repeat_interleave(self.merged, 1) if self.merged > 1 else frames, class_tokens

    def join(self, features: Tensor, class_tokens: Tensor) -> Tensor:
        """Undo :meth:`split`: join features [B,T,C,h,w] and class tokens into an output."""
        if self.merged > 1:
            features = features.unflatten(1, (-1, self.merged)).mean(2)
        if "n" in self.order:
            features = features.flatten(3)
        sizes = dict(zip(self.order, features.shape, strict=True))
        frames = features.permute([self.order.index(axis) for axis in self.axes])
        frames = frames.reshape([prod(sizes[axis] for axis in factors) for factors in self.dims])
        return torch.cat([class_tokens, frames], self._token_dim()) if self.leading else frames

    def _token_dim(self) -> int:
        return next((i for i, factors in enumerate(self.dims) if "n" in factors), 0)

    def _without_class_tokens(self, shape: torch.Size) -> list[int]:
        return [size - self.leading * (i == self._token_dim()) for i, size in enumerate(shape)]

    def _sizes(self, factors: list[str], size: int, batch: int) -> list[int]:
        """Return the sizes of the factors of a dimension without class tokens; at most one is inferred."""
        known = {"B": batch, "T": self.num_frames}
        rest = size // prod(known.get(factor, 1) for factor in factors)
        return [known.get(factor, rest) for factor in factors]


def _unreadable(text: str) -> str:
    return (
        f"layout {text!r} cannot be read, expected B, T (or T/2, T/4, ...), C and either h and w or n, each "
        "once, such as '[B,C,T/2,h,w]', '[B,1+T*n,C]' or '[B*T,n,C]'"
    )
