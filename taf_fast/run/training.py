"""The loop of a run over its epochs and steps."""

import time
from collections.abc import Iterator

from taf_fast.data import Batch
from taf_fast.errors import OutputError, RunError, UserError
from taf_fast.measure.evaluate import Evaluation, Prediction, predict, score
from taf_fast.process import ranks
from taf_fast.process.progress import Progress
from taf_fast.process.stopping import StopRequest
from taf_fast.run.best import Best
from taf_fast.run.optim import learning_rates, set_learning_rate
from taf_fast.run.result import Result, write_result
from taf_fast.run.state import RunState
from taf_fast.run.trackers import Trackers
from taf_fast.run.unsettled import Measured, Unsettled
from taf_fast.run.waiting import Waiting


class Training:
    """A run in progress on this rank, from where ``state`` is.

    ``trackers`` get what is measured, on the first rank; ``stop`` is looked at between two steps.
    """

    def __init__(self, state: RunState, trackers: Trackers | None, stop: StopRequest) -> None:
        self._state, self._parts, self._folder = state, state.parts, state.folder
        self._trackers, self._stop = trackers, stop
        total = self._parts.config.epochs * len(self._parts.train)
        self._progress = Progress(self._folder.path.name, total)
        self._unsettled = Unsettled(self._report)
        self._waiting = Waiting()
        self._stopping = False

    def train(self) -> Result | None:
        """Train to the end of the run; None if a rank was asked to stop, and the state is saved."""
        state, parts, config = self._state, self._parts, self._parts.config
        name, predictions = self._folder.path.name, None
        with self._progress as progress:
            done = parts.train.epoch * len(parts.train) + parts.train.iteration
            rates = learning_rates(config, len(parts.train), done)
            while not state.ended():
                epoch = state.epochs_validated
                # Of a run that could not read its validation videos, an epoch is trained but not validated.
                for batch in self._batches() if parts.train.epoch == epoch else ():
                    lr = next(rates)
                    set_learning_rate(parts.optimizer, lr)
                    self._step(batch, epoch=epoch, lr=lr)
                    if state.steps_done % config.checkpoint_every == 0:
                        self.save()
                if self._stopping:
                    self.save()
                    progress.line(f"stopped at step {state.steps_done}, its state is in {self._folder.state}")
                    return None
                self._unsettled.settle()
                if (waited := self._waiting.end_epoch(config, parts.train)) is not None:
                    progress.line(f"{name} epoch {epoch + 1}/{config.epochs}: {waited}")
                predictions = predict(parts.trained, parts.validation, parts.device)
                evaluation = score(predictions)
                self._count_epoch(evaluation)
                self.save()
                if state.best_is_now() and ranks.first():
                    parts.save_weights(self._folder.best)
                progress.line(
                    f"{name} epoch {epoch + 1}/{config.epochs}: validation top-1 "
                    f"{100 * evaluation.top1:.1f} %, loss {evaluation.loss:.3f}"
                )
            if state.best and state.epochs_validated < config.epochs:
                progress.line(
                    f"ended after epoch {state.epochs_validated}: no better {state.best.measure} since epoch "
                    f"{state.best.epoch + 1}"
                )
        predictions = predictions or predict(parts.trained, parts.validation, parts.device)
        return ranks.from_first(lambda: self._finish(predictions))

    def save(self) -> None:
        """Save the state, once the results of all steps are known; RunError if one of them, or the model, is
        not finite."""
        self._unsettled.settle()
        self._state.save()

    def _batches(self) -> Iterator[Batch]:
        """The rest of the epoch, or until a rank is asked to stop. If one rank has no batch, all raise its
        error. In both cases the position is that after the last batch.

        Between two batches ranks have one exchange on the host, while a GPU computes the step before it.
        """
        loader = self._parts.train
        batches = iter(loader)
        while True:
            position = loader.epoch, loader.iteration
            batch, error = None, None
            try:
                batch = next(batches, None)
            except UserError as caught:
                error = caught
            started = time.perf_counter()
            # Signals reach ranks in different steps.
            flags = self._stop.requested, error is not None
            self._stopping, failing = self._unsettled.settle(flags, leave=1)
            self._unsettled.count_seconds(time.perf_counter() - started)
            if self._stopping or failing:
                loader.epoch, loader.iteration = position
            if failing:
                raise ranks.first_error(error)
            if batch is None or self._stopping:
                return
            yield batch

    def _step(self, batch: Batch, **about: float) -> None:
        started = time.perf_counter()
        step = self._parts.optimizer_step.take(batch, self._state.steps_done + 1)
        self._state.steps_done = step.number
        seconds = time.perf_counter() - started
        self._unsettled.add(step, **about, wait_seconds=batch.wait, step_seconds=seconds)

    def _report(self, step: Measured) -> None:
        if (failure := step.failure()) is not None:
            raise RunError(f"{failure}; {self._state.kept()}")
        self._waiting.add(step.about["wait_seconds"], step.about["step_seconds"])
        self._log(step.number, **step.about, **step.values, clips=step.clips)
        try:
            self._progress.update(step.number, f"loss {step.values['loss']:.3f}")
        except OutputError:  # after the state is saved, the next line raises it again
            self._stop.requested = True

    def _count_epoch(self, evaluation: Evaluation) -> None:
        state, measure = self._state, self._parts.config.keep_best
        epoch = state.epochs_validated
        values = {f"val_{name}": value for name, value in vars(evaluation).items()}
        if measure is not None:
            state.best = (state.best or Best(measure, epoch, evaluation)).or_better(epoch, evaluation)
            values["best_epoch"] = state.best.epoch
        self._log(state.steps_done, epoch=epoch, **values)
        state.epochs_validated += 1

    def _log(self, step: int, **values) -> None:
        if self._trackers is not None:
            line = {"step": step, **values, "time": round(time.time(), 3)}
            self._state.metrics.append(**line)
            self._trackers.add(line)

    def _finish(self, predictions: list[Prediction]) -> Result:
        self._parts.save_weights(self._folder.weights)
        return write_result(self._folder, predictions, self._parts.info.classes, self._state.best)
