"""Which decoder a run takes: the one that gives its clips fastest on this machine."""

import contextlib
import time
from collections.abc import Callable

import torch

from taf_fast.data import ClipLoader
from taf_fast.errors import UserError

#: Those that are timed.
BATCHES = 8


def decoders_of(device: torch.device) -> tuple[str, ...]:
    """The decoders that a run on ``device`` can have, installed or not."""
    return ("pyav", "dali", "mixed") if device.type == "cuda" else ("pyav", "dali")


def fastest_decoder(
    load: Callable[[str], ClipLoader],
    decoders: tuple[str, ...],
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[str, str]:
    """Load a few batches with each decoder.

    Args:
        load: decoder -> a loader of the run's training clips, which is closed here.
        decoders: to try. What cannot decode these clips, or is not installed, is left out.
        clock: seconds.

    Returns:
        The decoder with most clips per second, and a line with the rates of all.

    Raises:
        UserError: the error of the first decoder, if none of them works.
    """
    rates: dict[str, float] = {}
    errors: dict[str, UserError] = {}
    for decoder in decoders:
        try:
            with contextlib.closing(load(decoder)) as loader:
                rates[decoder] = _clips_per_second(loader, clock)
        except UserError as error:
            errors[decoder] = error
    if not rates:
        raise errors[decoders[0]]
    fastest = max(rates, key=rates.__getitem__)
    found = [f"{decoder} {rate:.0f}" for decoder, rate in rates.items()]
    found += [f"{decoder}: {error}" for decoder, error in errors.items()]
    return fastest, f"decoder {fastest}, by clips per second: {', '.join(found)}"


def _clips_per_second(loader: ClipLoader, clock: Callable[[], float]) -> float:
    """After the first batch, for which processes and decoders start, if there are more."""
    started, clips = clock(), 0
    for number, batch in enumerate(loader):
        if number == BATCHES:
            break
        if number == 0 and len(loader) > 1:
            started = clock()
            continue
        clips += len(batch.ids)
    return clips / max(clock() - started, 1e-9)
