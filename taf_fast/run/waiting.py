"""Whether a run waits for its data, and what would help."""

from taf_fast.data import ClipLoader, usable_cpus
from taf_fast.data.clip import FramePack
from taf_fast.process import ranks
from taf_fast.run.config import FinetuneConfig

# Fraction of the time.
LIMIT = 0.05
# Nothing is decoded ahead of the first steps of an epoch, of which the first of all compile besides.
FIRST_STEPS = 10
# Of fewer steps, one that waits for a busy machine is too large a part.
LEAST_STEPS = 20


class Waiting:
    """Adds up, over each epoch, how long the steps of this rank wait for their batches."""

    def __init__(self) -> None:
        self._said = False
        self._begin()

    def _begin(self) -> None:
        self._steps, self._waited, self._worked = 0, 0.0, 0.0

    def add(self, waited: float, worked: float) -> None:
        """Count a step: the seconds for which it waited for its batch, and those it took from then on."""
        self._steps += 1
        if self._steps > FIRST_STEPS:
            self._waited += waited
            self._worked += worked

    def end_epoch(self, config: FinetuneConfig, loader: ClipLoader) -> str | None:
        """A line to print if the rank that waits longest did so for more than ``LIMIT`` of the epoch; the
        first such epoch has one. All ranks must call this."""
        total = self._waited + self._worked
        enough = self._steps >= FIRST_STEPS + LEAST_STEPS and total > 0
        shares = ranks.union({ranks.rank(): self._waited / total if enough else 0.0})
        self._begin()
        if self._said or max(shares.values()) <= LIMIT:
            return None
        self._said = True
        return f"waited for clips {100 * max(shares.values()):.0f} % of the epoch: {_help(config, loader)}"


def _help(config: FinetuneConfig, loader: ClipLoader) -> str:
    cpus, number = usable_cpus(), config.threads or config.workers
    ways = []
    if config.decoder == "pyav" and config.threads is not None:
        ways.append(f"--workers instead of --threads (this process may use {cpus} CPUs)")
    elif number is not None and number < cpus:
        ways.append(f"more --workers than {number} (this process may use {cpus} CPUs)")
    if not any(isinstance(clip.source, FramePack) for clip in loader.manifest.clips):
        ways.append("a decoded cache (taf-fast scan --cache)")
    if config.decoder != "mixed" and config.device.startswith("cuda"):
        ways.append("--decoder mixed, which decodes videos on the GPU")
    return f"what would help is {', or '.join(ways)}" if ways else "it would take more CPUs to decode them"
