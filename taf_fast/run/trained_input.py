"""The clips that a checkpoint was trained on, compared with those that it is given."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taf_fast.plain import say
from taf_fast.process import ranks

# The official projects train on frames of this size.
_OFFICIAL_SIZE = 224
# How TSM, MMAction2 and TAM write the number of frames into the names of their files.
_FRAMES = re.compile(r"segment(\d+)|\d+x\d+x(\d+)(?=[-_])|[-_]f(\d+)(?=[-_.])")


def say_if_input_differs(checkpoint: Path, known: Mapping[str, Any], num_segments: int, size: int) -> None:
    """Print a note if a checkpoint was trained on other clips than those of ``num_segments`` frames of
    ``size`` pixels that it is given, or if that is not known.

    Args:
        known: ``num_segments`` and ``size`` of its training, if this project wrote it.
    """
    frames = known.get("num_segments") or _frames_in_name(checkpoint)
    trained_size = known.get("size", _OFFICIAL_SIZE)
    notes = []
    if frames is None:
        notes.append(
            f"{checkpoint} does not say how many frames its clips had in training; here they have "
            f"{num_segments} (--num-segments)"
        )
    elif frames != num_segments:
        notes.append(f"{checkpoint} was trained on {frames} frames per clip; here they are {num_segments}")
    if trained_size != size:
        notes.append(f"{checkpoint} was trained on frames of {trained_size} pixels; here they have {size}")
    if ranks.first():
        for note in notes:
            say(f"note: {note}")


def _frames_in_name(checkpoint: Path) -> int | None:
    found = _FRAMES.search(checkpoint.name)
    return int(next(filter(None, found.groups()))) if found else None
