"""The folder of a run, for one process at a time."""

import contextlib
import dataclasses

from taf_fast.errors import RunError
from taf_fast.files import make_folder
from taf_fast.process import ranks
from taf_fast.run.config import FinetuneConfig
from taf_fast.run.folder import RunFolder
from taf_fast.run.values import AUTO


class Claim:
    """Keeps other processes out of ``folder`` until ``stack`` ends, and sees whether a run may begin there
    or, with ``resume``, go on. All ranks must call each method.

    Each raises RunError if it may not, and FileError if another process works there.
    """

    def __init__(self, folder: RunFolder, resume: bool, stack: contextlib.ExitStack) -> None:
        self._folder, self._resume, self._stack = folder, resume, stack
        self._held = False

    def look(self, config: FinetuneConfig) -> None:
        """Lock the folder if it exists; make nothing."""
        ranks.from_first(lambda: self._hold(config, make=False))

    def make(self, config: FinetuneConfig) -> None:
        """Lock the folder, which is made if need be."""
        ranks.from_first(lambda: self._hold(config, make=True))

    def _hold(self, config: FinetuneConfig, make: bool) -> None:
        folder = self._folder
        if make:
            make_folder(folder.path)
        if not self._held and folder.path.exists():
            self._stack.enter_context(folder.held())
            self._held = True
        if folder.exists():
            if not self._resume:
                raise RunError(f"{folder.path} holds a run already: resume it, or choose another folder")
            earlier = folder.read_config()
            if config.decoder == AUTO:  # it was chosen when the run began
                config = dataclasses.replace(config, decoder=earlier.decoder)
            config.require_same_run(earlier, resume=True)
        elif left := folder.left_without_config():
            raise RunError(
                f"{folder.path} has {left} but no {folder.config.name}: a run without its configuration is "
                "neither resumed nor overwritten, choose another folder"
            )
