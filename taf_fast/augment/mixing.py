"""Clips mixed with others of their batch: MixUp, CutMix and their temporal variants."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# count -> that many uniform random numbers in [0,1), drawn on the generator's device.
_Draw = Callable[[int], Tensor]


@dataclass(frozen=True)
class Mixing:
    """One mixing augmentation, by its name in :data:`MIXINGS`.

    Kim et al., "Learning Temporally Invariant and Localizable Features via Data Augmentation for Video
    Recognition" (2020). All clips of a batch share one permutation, one lambda and one box. With a clip
    a and its partner b:

    - ``mixup``: ``lambda a + (1 - lambda) b``, lambda ~ Beta(1,1);
    - ``cutmix``: a with a box of b, which covers all frames and, before it is cut at the borders, the share
      1 - lambda of each;
    - ``framemixup``, ``cubemixup``: ``mu a + (1 - mu) b``, mu ~ Beta(2,2); every second time with a box of
      the weaker of both alone: of full frames, the share 1 - lambda of the clip, or cut along all three
      dimensions, each by the cube root of it.

    The weight of a's label is the share of a in the clip.
    """

    name: str

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Mix a batch.

        Args:
            x: [B,T,3,H,W], floats.
            generator: draws all random numbers; the global one if None.

        Returns:
            The mixed clips, shaped as ``x``; the weight of a clip's own label, a float32 scalar in [0,1]
            (its partner's has the rest); and the partner of every clip, int64 [B].
        """
        device = x.device if generator is None else generator.device

        def draw(count: int) -> Tensor:
            return torch.rand(count, generator=generator, device=device).to(x.device)

        partner = torch.randperm(len(x), generator=generator, device=device).to(x.device)
        return *_MIX[self.name](x, x[partner], draw), partner


def _mixup(a: Tensor, b: Tensor, draw: _Draw) -> tuple[Tensor, Tensor]:
    (own,) = draw(1)  # Beta(1,1)
    return _blend(a, b, own), own


def _cutmix(a: Tensor, b: Tensor, draw: _Draw) -> tuple[Tensor, Tensor]:
    box = _box(a, draw, times=False, sides=True)
    return torch.where(box, b, a), 1 - box.float().mean()


def _frame_mixup(a: Tensor, b: Tensor, draw: _Draw) -> tuple[Tensor, Tensor]:
    return _boxed_mixup(a, b, draw, sides=False)


def _cube_mixup(a: Tensor, b: Tensor, draw: _Draw) -> tuple[Tensor, Tensor]:
    return _boxed_mixup(a, b, draw, sides=True)


def _boxed_mixup(a: Tensor, b: Tensor, draw: _Draw, sides: bool) -> tuple[Tensor, Tensor]:
    box = _box(a, draw, times=True, sides=sides)
    own = draw(3).median()  # Beta(2,2) is the distribution of the middle one of three uniform numbers
    weaker = torch.where(own >= 0.5, b, a)
    with_box = draw(1) < 0.5
    mixed = torch.where(box & with_box, weaker, _blend(a, b, own))
    covered = box.float().mean()
    boxed = own * (1 - covered) + torch.where(own >= 0.5, 0, covered)
    return mixed, torch.where(with_box, boxed, own)[0]


def _blend(a: Tensor, b: Tensor, own: Tensor) -> Tensor:
    return torch.lerp(b, a, own.to(a.dtype))


def _box(like: Tensor, draw: _Draw, times: bool, sides: bool) -> Tensor:
    """Whether each value of a clip is in the box, bool [T,1,H,W].

    The box has the same share of each dimension that it is cut along, rounded down to an even number, and
    ends where the clip ends.
    """
    frames, _, height, width = like.shape[1:]
    (outside,) = draw(1)  # lambda ~ Beta(1,1)
    share = (1 - outside) ** (1 / (times + 2 * sides))
    centres = draw(3)
    inside = []
    for length, centre, cut in zip((frames, height, width), centres, (times, sides, sides), strict=True):
        place = torch.arange(length, device=like.device)
        middle, half = (centre * length).long(), (share * length).long() // 2
        within = (place >= middle - half) & (place < middle + half)
        inside.append(within if cut else torch.ones_like(within))
    t, h, w = inside
    return t[:, None, None, None] & h[:, None] & w


_MIX = {"mixup": _mixup, "cutmix": _cutmix, "framemixup": _frame_mixup, "cubemixup": _cube_mixup}

MIXINGS = {name: Mixing(name) for name in _MIX}
