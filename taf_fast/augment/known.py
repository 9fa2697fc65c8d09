"""What an attack has found out about a model, once for each of its forms."""

from dataclasses import dataclass, field
from typing import NamedTuple
from weakref import WeakKeyDictionary

from torch import nn

from taf_fast.models.modules import classes_of, modes_of


class Examined(NamedTuple):
    """How many batch norms a forward has; how many operations are on its tape, None where it is not
    replayable; and whether clips may be attacked alone, as far as that was asked."""

    norms: int
    taped: int | None
    alone: bool


@dataclass
class Known:
    """What holds for a model whose modules have certain classes and modes.

    Attributes:
        changing: the state that a forward changes, (index of the module, name); None before the first one.
        examined: by the frames of a clip.
    """

    changing: list[tuple[int, str]] | None = None
    examined: dict[int, Examined] = field(default_factory=dict)


_KNOWN: WeakKeyDictionary[nn.Module, dict[tuple[tuple[type, ...], tuple[bool, ...]], Known]] = (
    WeakKeyDictionary()
)


def known_of(model: nn.Module) -> Known:
    """The entry of the model's present form, to read and to write."""
    return _KNOWN.setdefault(model, {}).setdefault((classes_of(model), modes_of(model)), Known())
