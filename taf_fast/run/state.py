"""The state of a run: how far it is, and all that it takes to go on from there."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from taf_fast.errors import RunError
from taf_fast.files import write_json
from taf_fast.measure.evaluate import Evaluation
from taf_fast.plain import say
from taf_fast.process import ranks
from taf_fast.run.best import Best
from taf_fast.run.checkpoint import first_not_finite, load_state, save_state
from taf_fast.run.config import names_of
from taf_fast.run.fingerprint import fingerprint, require_same
from taf_fast.run.folder import RunFolder
from taf_fast.run.metrics import MetricsLog
from taf_fast.run.parts import Parts
from taf_fast.run.values import Scope


class RunState:
    """The position of a run, with the parts and the metrics that go with it.

    ``steps_done`` and ``epochs_validated`` are numbers, and ``best`` is the best of these epochs, if the
    configuration has ``keep_best``.
    """

    def __init__(self, parts: Parts, folder: RunFolder) -> None:
        self.parts = parts
        self.folder = folder
        self.metrics = MetricsLog(folder.metrics)
        self.steps_done = self.epochs_validated = 0
        self.best: Best | None = None

    def ended(self) -> bool:
        """Whether all epochs are done, or those after the best were too many."""
        patience = self.parts.config.patience
        early = patience is not None and self.best and self.epochs_validated > self.best.epoch + patience
        return bool(early) or self.epochs_validated == self.parts.config.epochs

    def best_is_now(self) -> bool:
        """Whether the model is that after the best epoch."""
        position = (self.parts.train.epoch, self.parts.train.iteration)
        return self.best is not None and position == (self.best.epoch + 1, 0)

    def kept(self) -> str:
        """What there is to go on from if the run ends now, in words."""
        exists = self.folder.state.exists()
        return f"{self.folder.path} keeps the state before" if exists else "nothing was saved"

    def save(self) -> None:
        """Write the state of all ranks, each of which learns of the bad clips of the others. The results of
        all steps must be in the metrics.

        RunError if the model is not finite, which all ranks notice alike; the state before stays.
        """
        parts = self.parts
        models = dict.fromkeys((parts.model, parts.trained))
        if (name := next(filter(None, map(first_not_finite, models)), None)) is not None:
            raise RunError(
                f"step {self.steps_done} left a NaN or an infinity in {name}, expected finite values; "
                f"{self.kept()}"
            )
        for loader in (parts.train, parts.validation):
            loader.quarantined = ranks.union(loader.quarantined)
        states = {name: generator.get_state() for name, generator in self._generators().items()}
        states = ranks.union(states)
        if not ranks.first():
            return
        position = {
            "step": self.steps_done,
            "metrics": [self.metrics.lines, self.metrics.checksum],
            "train": parts.train.state_dict(),
            "epochs_validated": self.epochs_validated,
            "best": None if self.best is None else dataclasses.asdict(self.best),
            "sharing": self._sharing(),
            "run": fingerprint(parts.config, parts.manifests),
        }
        # The state counts on what comes before it, so that must outlast a power cut that the state outlasts.
        self.metrics.sync()
        quarantined = {"train": parts.train.quarantined, "validation": parts.validation.quarantined}
        write_json(self.folder.quarantine, quarantined, indent=1)
        save_state(self.folder.state, parts.model, parts.optimizer, states, position, parts.average)

    def restore(self) -> tuple[int, int]:
        """Put the saved state back in place. -> the number and the checksum of the lines of the metrics that
        it counts on.

        Raises:
            RunError: it is the state of another run, or of one that is further than this one may be.
            CheckpointError: the file is damaged.
        """
        parts, path = self.parts, self.folder.state
        position, states = load_state(path, parts.model, parts.optimizer, parts.average)
        now = fingerprint(parts.config, parts.manifests)
        ranks.from_first(lambda: require_same(now, position["run"], path))
        self.steps_done, self.epochs_validated = position["step"], position["epochs_validated"]
        if self.epochs_validated > parts.config.epochs:
            raise RunError(
                f"{path} is the state after {self.epochs_validated} epochs, expected at most "
                f"epochs = {parts.config.epochs}"
            )
        if (best := position["best"]) is not None:
            self.best = Best(best["measure"], best["epoch"], Evaluation(**best["evaluation"]))
        try:
            parts.train.load_state_dict(position["train"])
        except ValueError as error:
            raise RunError(f"{self.folder.path} cannot be resumed: {error}") from None
        self._restore_generators(position, states)
        lines, checksum = position["metrics"]
        return lines, checksum

    def _generators(self) -> dict[str, torch.Generator]:
        generators = {"cpu": torch.default_generator, "attack": self.parts.generator}
        if self.parts.device.type == "cuda":
            generators["cuda"] = torch.cuda.default_generators[self.parts.device.index or 0]
        own = "" if ranks.first() else f".rank{ranks.rank()}"
        return {name + own: generator for name, generator in generators.items()}

    def _sharing(self) -> dict[str, Any]:
        """How ranks share a step, by names."""
        values = {name: getattr(self.parts.config, name) for name in sorted(names_of(Scope.SHARING))}
        return {"ranks": ranks.count()} | values

    def _restore_generators(self, position: dict, states: dict[str, Tensor]) -> None:
        """Put the generators back in place; with another number of ranks, each gets new ones."""
        now = self._sharing()
        # States of earlier versions know the number of ranks alone.
        there = position.get("sharing", now | {"ranks": position.get("ranks")})
        changed = [name for name in now if now[name] != there[name]]
        if changed and ranks.first():
            texts = [f"{name} {there[name]} before, {now[name]} now" for name in changed]
            say(
                f"{'; '.join(texts)}: from step {self.steps_done + 1} on, the same clips and learning rates, "
                "but not bit for bit the same run"
            )
        for name, generator in self._generators().items():
            if "ranks" not in changed:
                generator.set_state(states[name])
            else:
                moment = self.parts.train.epoch, self.steps_done
                generator.manual_seed(ranks.own_seed(self.parts.config.seed, *moment))
