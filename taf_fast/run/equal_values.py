"""The values that all ranks of a run have in common."""

from pathlib import Path

from taf_fast.errors import RunError
from taf_fast.process import ranks
from taf_fast.run.config import FIELDS, FinetuneConfig, hint_of
from taf_fast.run.values import kinds, quoted


def require_equal_values(config: FinetuneConfig) -> None:
    """Raise RunError, on all ranks, if one was started with other values than the first. Each machine may
    have its own files and threads."""
    free = {"threads", "workers"} | {name for name in FIELDS if Path in kinds(hint_of(name))}
    values = {name: getattr(config, name) for name in FIELDS if name not in free}
    first = ranks.from_first(lambda: (ranks.place(), values))
    with ranks.together():
        for name, value in values.items():
            if value != first[1][name]:
                raise RunError(
                    f"{name} must be equal on all ranks: {quoted(value)} for {ranks.place()}, "
                    f"{quoted(first[1][name])} for {first[0]}"
                )
