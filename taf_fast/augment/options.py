"""How the options of an augmentation are checked and shown."""

import inspect
from typing import Any

#: What an amount of pixels must be.
AMOUNT = "between 0 and 1, which is black to white: 64 of 255 levels are 64/255"


class Shown:
    """Prints itself as the call that makes it, with the options that it keeps."""

    def __repr__(self) -> str:
        own = vars(getattr(self, "objective", None) or self) | vars(self)
        names = [name for name in inspect.signature(type(self)).parameters if name in own]
        return f"{type(self).__name__}({', '.join(f'{name}={_shown(own[name])}' for name in names)})"


def _shown(value: Any) -> str:
    """A value as Python text, levels of pixels as such."""
    levels = round(255 * value) if isinstance(value, float) and 0 < value < 1 else 0
    return f"{levels}/255" if levels and levels / 255 == value else repr(value)
