"""How a run begins or goes on: its state, and the first files in its folder."""

import contextlib

from taf_fast.errors import RunError
from taf_fast.files import write_atomically, write_json
from taf_fast.plain import say
from taf_fast.process import ranks
from taf_fast.run.checkpoint import require_whole
from taf_fast.run.environment import environment
from taf_fast.run.fingerprint import data_lines
from taf_fast.run.state import RunState
from taf_fast.run.trackers import Trackers


def begin(state: RunState, stack: contextlib.ExitStack) -> Trackers | None:
    """Restore the state in the run's folder, if there is one, and write the files with which a run begins.
    All ranks must call this.

    Returns:
        On the first rank, the trackers, which are closed when ``stack`` ends.

    Raises:
        RunError, CheckpointError: the state, or a file that it counts on, is damaged or of another run.
    """
    # The folder may be on the first rank's machine alone.
    begun = ranks.from_first(state.folder.state.exists)
    lines, checksum = state.restore() if begun else (0, 0)
    places = ranks.places()
    if places.count(" on ") > 1 and ranks.first():
        say(places)
    trackers = None
    with ranks.together():
        if ranks.first():
            _write(state, lines, checksum, places)
            trackers = Trackers(state.folder, state.parts.config, state.folder.read_metrics())
            stack.callback(trackers.close)
    return trackers


def _write(state: RunState, lines: int, checksum: int, places: str) -> None:
    """Write the files. What a kill leaves without a configuration is no run."""
    folder, parts = state.folder, state.parts
    begun = folder.exists()
    if begun:  # if its files do not fit, it keeps the configuration that it has
        _require_best(state)
        state.metrics.rewind(lines, checksum)
        if state.best_is_now():  # a kill may have come between the state and these weights
            parts.save_weights(folder.best)
        if not state.ended():
            folder.set_aside(state.epochs_validated)
    write_atomically(folder.config, parts.config.write)
    earlier: dict[str, str] = {}
    if state.steps_done:
        with contextlib.suppress(RunError):  # without this file the run goes on all the same
            earlier = folder.read_environment()
    found = environment(parts.device, data_lines(parts.manifests) | {"processes": places}, earlier)
    write_json(folder.environment, found, indent=1)
    if not begun:
        state.metrics.rewind(lines, checksum)


def _require_best(state: RunState) -> None:
    """Raise an error unless the weights of the best epoch are in their file, or still in the state."""
    if state.best is None or state.best_is_now():
        return
    path = state.folder.best
    if not path.exists():
        raise RunError(
            f"{path} does not exist, expected the weights after epoch {state.best.epoch + 1}: "
            "put the file back or begin again in another folder"
        )
    require_whole(path)
