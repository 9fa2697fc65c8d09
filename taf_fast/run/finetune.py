"""The fine-tuning loop."""

import contextlib
import copy
import dataclasses
import functools
import math
import resource
import statistics
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from taf_fast.augment.batch_statistics import SingleValueError
from taf_fast.data import (
    Batch,
    ClipLoader,
    DataError,
    Manifest,
    VideoDataset,
    read_dataset,
)
from taf_fast.errors import ClassesError, OutputError, RunError, Stopped, UserError
from taf_fast.files import make_folder, write_atomically, write_json
from taf_fast.measure.evaluate import Evaluation, Prediction, predict, score, write_predictions
from taf_fast.models.dual_batch_norm import add_adversarial_bn, strip_adversarial_bn
from taf_fast.models.memory_format import channels_last
from taf_fast.plain import say
from taf_fast.precision import algorithms, autocast
from taf_fast.process import ranks
from taf_fast.process.host_copy import HostCopy
from taf_fast.process.progress import Progress
from taf_fast.process.stopping import StopRequest
from taf_fast.run.average import moving_average
from taf_fast.run.best import Best
from taf_fast.run.checkpoint import (
    ModelInfo,
    first_not_finite,
    load_state,
    require_whole,
    save_state,
    save_weights,
)
from taf_fast.run.config import FIELDS, FinetuneConfig, absolute, hint_of, names_of
from taf_fast.run.decoder_choice import decoders_of, fastest_decoder
from taf_fast.run.environment import environment
from taf_fast.run.folder import RunFolder
from taf_fast.run.metrics import MetricsLog
from taf_fast.run.model import build_model, norm_of_single_values
from taf_fast.run.optim import build_optimizer, learning_rates, set_learning_rate
from taf_fast.run.reduction import ReducedStep
from taf_fast.run.scanned import scanned_by_first
from taf_fast.run.trackers import Trackers, require_trackers
from taf_fast.run.values import AUTO, FREE_ON_RESUME, Scope, kinds, quoted
from taf_fast.run.waiting import Waiting
from taf_fast.step import PlainStep, StepOutput, TAFStep

# Means over the clips of each rank, which are averaged over ranks; everything else is summed.
_MEANS = {"loss", "clean_loss", "adv_loss", "grad_norm"}


# The end of the names of those checksums that are of the sizes of all files.
_SIZES = "sizes of files"


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run.

    ``weights`` is the file of the model without adversarial batch norms, ``evaluation`` its scores on the
    validation videos, ``seconds_per_step`` the median and ``attacked_share`` the fraction of the training
    clips that were attacked, in [0,1]. ``best`` is the best epoch, whose model is ``best.safetensors`` in the
    run's folder, if the configuration has ``keep_best``. With ``ema``, all of this is of the averaged model.
    """

    weights: Path
    evaluation: Evaluation
    seconds_per_step: float
    attacked_share: float
    best: Best | None = None


def finetune(config: FinetuneConfig, resume: bool = False, trust_checkpoint: bool = False) -> Result | None:
    """Run ``config`` to its end, or until SIGTERM, SIGINT or SIGHUP asks to stop.

    Ranks (:func:`taf_fast.process.ranks.joined`) share the clips of every step. They average gradients and
    batch statistics, so that their models are always equal.

    Args:
        config: without a checkpoint, training starts from random or ImageNet weights.
        resume: go on from the state in ``config.out``, if there is one. On the same machine, with as many
            threads and ranks, the result is bit for bit that of a run that was never interrupted, and that
            had as many epochs from the start if there are more of them now. Another number of ranks, or of
            parts (``accumulate``), takes the same clips in the same steps; batch norms then see other
            groups of them, and generators are new ones.
        trust_checkpoint: run the code that a ``torch.save`` checkpoint may hold.

    Returns:
        The result, or None if the run was asked to stop and saved its state in ``config.out``, unless it had
        not yet begun. It also stops if nothing can be printed any more, with an OutputError.

    Raises:
        RunError: a value cannot work, or the loss, the gradient or the model is no longer finite.
        DataError, CheckpointError: the data or a checkpoint cannot be read, or does not fit.
        FileError: another process works on the run, or a file cannot be written.
        Stopped: a signal came before the first step of a run of several ranks.
        SystemExit: another rank was asked to stop, and the state is saved; the status is ``ranks.AGAIN``.
    """
    with StopRequest(at_once=True) as stop, contextlib.ExitStack() as stack:
        try:
            training = _Training(config, stack)
            training.look_into_folder(resume)
            training.build(trust_checkpoint)
        except Stopped as stopped:
            if ranks.count() > 1:
                raise
            say(stopped)
            return None
        stop.at_once = False
        training.begin(resume)
        try:
            result = training.train(stop)
        except DataError as error:
            # The weights are sound, so the run can go on once the data are mended. All ranks must save.
            if error.known_to_all_ranks:
                training.save()
            raise
        if training.stopping and not stop.requested:
            sys.exit(ranks.AGAIN)
        return result


@dataclasses.dataclass(frozen=True)
class DryRun:
    """The first batch of a run, and what a training step of it takes on this rank.

    ``clips`` uint8 [B,T,H,W,3] on the CPU, with their ``labels`` as names of classes and their ``ids``;
    ``steps`` of an epoch; ``memory``, the largest so far, in bytes of the ``device`` (the process on a CPU);
    ``step_seconds`` and ``load_seconds`` of the batch.
    """

    clips: Tensor
    labels: tuple[str, ...]
    ids: tuple[str, ...]
    device: torch.device
    loss: float
    steps: int
    memory: int
    step_seconds: float
    load_seconds: float

    @property
    def epoch_seconds(self) -> float:
        """An estimate, without validation: clips are loaded while the step before is computed."""
        return self.steps * max(self.step_seconds, self.load_seconds)


def dry_run(config: FinetuneConfig, trust_checkpoint: bool = False) -> DryRun:
    """Build all of a run and compute its first step twice, the second time to measure it; write nothing.

    The folder ``config.out`` is not looked at. Arguments and errors are those of :func:`finetune`.
    """
    with contextlib.ExitStack() as stack:
        training = _Training(config, stack)
        training.build(trust_checkpoint)
        return training.try_out()


def _crc(text: str) -> str:
    return f"{zlib.crc32(text.encode(errors='surrogatepass')):08x}"


def _backward_of(share: float, loss: Tensor) -> None:
    (loss if share == 1 else share * loss).backward()


class _Scalars:
    """Scalars of a step by ``names``, those on ``device`` on their way to the host in one copy."""

    def __init__(self, scalars: dict[str, Tensor], device: torch.device):
        self._scalars = scalars
        self.names = list(scalars)
        self._moved = [name for name, value in scalars.items() if value.device.type == device.type]
        self._copy = HostCopy(torch.stack([scalars[name] for name in self._moved]))

    def read(self) -> list[float]:
        moved = dict(zip(self._moved, self._copy.read().tolist(), strict=True))
        return [moved[name] if name in moved else float(self._scalars[name]) for name in self.names]


class _Unsettled(NamedTuple):
    """A step whose results have not been read yet: its number, scalars, clips of this rank, and what else to
    log, in which ``step_seconds`` may grow."""

    step: int
    scalars: _Scalars
    clips: int
    about: dict[str, float]


def _require_equal_values(config: FinetuneConfig) -> None:
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


def _computing(config: FinetuneConfig) -> str:
    """How a GPU computes the steps of a run, in words."""
    precision = "float32 (TF32)" if config.precision == "float32" else config.precision
    ways = {"compiled": config.compile, "deterministic": config.deterministic}
    return ", ".join(["channels_last", precision, *(way for way, chosen in ways.items() if chosen)])


class _Training:
    """A run in progress on this rank."""

    def __init__(self, config: FinetuneConfig, stack: contextlib.ExitStack) -> None:
        require_trackers(config)
        self.config = config
        self.folder = RunFolder(config.out)
        self.stack = stack
        self.locked = False
        self.steps_done = self.epochs_validated = 0
        self.best: Best | None = None
        self.unsettled: list[_Unsettled] = []
        self.measured: dict[str, float] = {}  # of the last step that was settled
        self.waiting = Waiting()
        self.progress: Progress | None = None
        self.stop: StopRequest | None = None
        self.stopping = False

    def look_into_folder(self, resume: bool) -> None:
        """Refuse a folder in which the run cannot begin or go on, before any work."""
        # A new folder is made, and locked, only when the run is known to work.
        ranks.from_first(lambda: self._take_folder(resume, make=False))

    def build(self, trust_checkpoint: bool) -> None:
        """Make the data loaders, the model, the optimiser and the step."""
        config = self.config
        _require_equal_values(config)
        if ranks.first() and (doubt := config.doubt()) is not None:
            say(doubt)
        part = ranks.share(config.batch_size, config.accumulate)
        self.batch_size = part * config.accumulate
        torch.manual_seed(config.seed)
        self.device = ranks.own_device(config.device)
        self.copying = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.stack.enter_context(algorithms(self.device, config.deterministic))

        datasets = [read_dataset(config.data, split) for split in ("train", "validation")]
        if config.dataset not in (None, datasets[0].name):
            raise RunError(f"{config.data} holds {datasets[0].name}, expected {config.dataset}")
        self.model = self._build_model(datasets[0], trust_checkpoint)
        self.info = ModelInfo(
            config.model, datasets[0].classes, config.num_segments, config.size, self.model.options
        )
        # A bad validation clip is to be found before the first epoch; bad training clips are replaced.
        train, validation = scanned_by_first(datasets, config.manifest, [True, False])
        decoder = ranks.from_first(lambda: self._decoder(train))
        self.config = config = dataclasses.replace(config, decoder=decoder)
        if self.device.type == "cuda" and ranks.first():
            say(f"{torch.cuda.get_device_name(self.device)}: {_computing(config)}")
        self.loader = self._loader(train, train=True)
        self.validation = self._loader(validation, train=False)
        if min(part, max(1, len(train.good) // ranks.count() // config.accumulate)) == 1:
            self._require_batches_of_one()
        if config.attack() is not None:
            add_adversarial_bn(self.model)
        channels_last(self.model.to(self.device)).train()
        self.optimizer = self._build_optimizer()
        self.average = None if config.ema is None else moving_average(self.model, config.ema)
        if not ranks.first():  # the first draws the same numbers as a single process
            torch.manual_seed(ranks.own_seed(config.seed))
        self.generator = torch.Generator(self.device).manual_seed(ranks.own_seed(config.seed))
        self.step = self._build_step()
        self.reduced = (
            ReducedStep(self.step, self._statistics(), config.exchange) if ranks.count() > 1 else None
        )

    def begin(self, resume: bool) -> None:
        """Take the folder, restore the state in it, and write the files with which a run begins."""
        # Nothing is written before the run is known to work and all ranks have looked into the folder.
        self.metrics = MetricsLog(self.folder.metrics)
        ranks.from_first(lambda: self._take_folder(resume, make=True))
        # The folder may be on the first rank's machine alone.
        begun = ranks.from_first(self.folder.state.exists)
        lines, checksum = self._restore() if begun else (0, 0)
        places = ranks.places()
        if places.count(" on ") > 1 and ranks.first():
            say(places)
        ranks.from_first(lambda: self._begin(lines, checksum, places))

    def _begin(self, lines: int, checksum: int, places: str) -> None:
        """Write the files with which a run begins. What a kill leaves without a configuration is no run."""
        begun = self.folder.exists()
        if begun:  # if its files do not fit, it keeps the configuration that it has
            self._require_best()
            self.metrics.rewind(lines, checksum)
            if self._best_is_now():  # a kill may have come between the state and these weights
                self._save_weights(self.folder.best)
            if not self._ended():
                self.folder.set_aside(self.epochs_validated)
        write_atomically(self.folder.config, self.config.write)
        earlier: dict[str, str] = {}
        if self.steps_done:
            with contextlib.suppress(RunError):  # without this file the run goes on all the same
                earlier = self.folder.read_environment()
        about = self._data_lines() | {"processes": places}
        found = environment(self.device, about, earlier)
        write_json(self.folder.environment, found, indent=1)
        if not begun:
            self.metrics.rewind(lines, checksum)
        self.trackers = Trackers(self.folder, self.config, self.folder.read_metrics())
        self.stack.callback(self.trackers.close)

    def _take_folder(self, resume: bool, make: bool) -> None:
        """Lock the folder, or one that is made if need be, and see whether the run may go on in it."""
        if make:
            make_folder(self.folder.path)
        if not self.locked and self.folder.path.exists():
            self.stack.enter_context(self.folder.held())
            self.locked = True
        if self.folder.exists():
            if not resume:
                raise RunError(f"{self.folder.path} holds a run already: resume it, or choose another folder")
            earlier = self.folder.read_config()
            config = self.config
            if config.decoder == AUTO:  # it was chosen when the run began
                config = dataclasses.replace(config, decoder=earlier.decoder)
            config.require_same_run(earlier, resume=True)
        elif left := self.folder.left_without_config():
            raise RunError(
                f"{self.folder.path} has {left} but no {self.folder.config.name}: a run without its "
                "configuration is neither resumed nor overwritten, choose another folder"
            )

    def _build_model(self, dataset: VideoDataset, trust_checkpoint: bool) -> nn.Module:
        config = self.config
        try:
            return build_model(
                dataset,
                config.model,
                config.num_segments,
                checkpoint=config.checkpoint,
                class_order=config.class_order,
                trust_checkpoint=trust_checkpoint,
                dropout=config.dropout,
                imagenet=config.imagenet,
                new_head=config.new_head,
            )
        except ClassesError as error:
            raise ClassesError(f"{error}; --new-head trains a new classifier for the data set") from None

    def _require_batches_of_one(self) -> None:
        config = self.config
        clip = torch.zeros(1, config.num_segments, 3, config.size, config.size)
        if norm := norm_of_single_values(self.model, clip):
            raise RunError(
                f"{norm} of {config.model}, a batch norm, gets a single value per channel, expected more: "
                f"steps of more than one clip per process, or a larger size than {config.size}"
            )

    def _build_optimizer(self) -> torch.optim.Optimizer:
        try:
            return build_optimizer(self.model, self.config)
        except ValueError as error:
            raise RunError(f"{self.config.model}: {error}") from None

    def _decoder(self, train: Manifest) -> str:
        """The decoder of the run: that of its earlier part, or if it is open, the fastest."""
        if self.config.decoder != AUTO:
            return self.config.decoder
        if self.folder.exists():
            return self.folder.read_config().decoder
        decoder, why = fastest_decoder(
            lambda decoder: self._loader(train, train=True, decoder=decoder), decoders_of(self.device)
        )
        say(why)
        return decoder

    def _loader(self, manifest: Manifest, train: bool, decoder: str | None = None) -> ClipLoader:
        config = self.config
        loader = ClipLoader(
            manifest,
            config.num_segments,
            config.size,
            self.batch_size,
            train=train,
            seed=config.seed,
            workers=config.workers,
            threads=config.threads,
            rank=ranks.rank(),
            world_size=ranks.count(),
            decoder=config.decoder if decoder is None else decoder,
            pin_memory=self.device.type == "cuda",
            quarantine_limit=config.quarantine_limit,
            view=config.view(),
        )
        self.stack.callback(loader.close)
        return loader

    def _build_step(self) -> PlainStep | TAFStep:
        config = self.config
        attack = config.attack()
        if attack is None:
            return PlainStep(self.model, config.compile, config.mixing())
        return TAFStep(self.model, attack, config.alpha, config.composition, config.compile)

    def _statistics(self) -> list[Tensor]:
        """The running statistics of all batch norms."""
        ends = ("running_mean", "running_var")
        return [buffer for name, buffer in self.model.named_buffers() if name.endswith(ends)]

    def try_out(self) -> DryRun:
        """The first step, which pays for allocations and compilation, and the same once more."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        batch = next(self._batches())
        set_learning_rate(self.optimizer, next(learning_rates(self.config, len(self.loader))))
        losses = []
        for _ in range(2):
            started = time.perf_counter()
            self._train_step(batch)
            self._settle()
            losses.append(self.measured["loss"])
            seconds = time.perf_counter() - started
        if self.device.type == "cuda":
            memory = torch.cuda.max_memory_reserved(self.device)
        else:
            memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return DryRun(
            batch.clips.cpu(),
            tuple(self.info.classes[label] for label in batch.labels.tolist()),
            tuple(batch.ids),
            self.device,
            loss=losses[0],
            steps=len(self.loader),
            memory=memory,
            step_seconds=seconds,
            load_seconds=batch.wait,
        )

    def train(self, stop: StopRequest) -> Result | None:
        config, predictions = self.config, None
        total = config.epochs * len(self.loader)
        with Progress(self.folder.path.name, total) as progress:
            self.progress, self.stop = progress, stop
            done = self.loader.epoch * len(self.loader) + self.loader.iteration
            rates = learning_rates(config, len(self.loader), done)
            while not self._ended():
                epoch = self.epochs_validated
                # Of a run that could not read its validation videos, an epoch is trained but not validated.
                for batch in self._batches() if self.loader.epoch == epoch else ():
                    lr = next(rates)
                    set_learning_rate(self.optimizer, lr)
                    self._train_step(batch, epoch=epoch, lr=lr)
                    if self.steps_done % config.checkpoint_every == 0:
                        self.save()
                if self.stopping:
                    self.save()
                    progress.line(f"stopped at step {self.steps_done}, its state is in {self.folder.state}")
                    return None
                self._settle()
                if (waited := self.waiting.end_epoch(config, self.loader)) is not None:
                    progress.line(f"{self.folder.path.name} epoch {epoch + 1}/{config.epochs}: {waited}")
                predictions = predict(self.trained, self.validation, self.device)
                evaluation = score(predictions)
                self._count_epoch(evaluation)
                self.save()
                if self._best_is_now() and ranks.first():
                    self._save_weights(self.folder.best)
                progress.line(
                    f"{self.folder.path.name} epoch {epoch + 1}/{config.epochs}: validation top-1 "
                    f"{100 * evaluation.top1:.1f} %, loss {evaluation.loss:.3f}"
                )
            if self.best and self.epochs_validated < config.epochs:
                progress.line(
                    f"ended after epoch {self.epochs_validated}: no better {self.best.measure} since epoch "
                    f"{self.best.epoch + 1}"
                )
        predictions = predictions or predict(self.trained, self.validation, self.device)
        return ranks.from_first(lambda: self._finish(predictions))

    @property
    def trained(self) -> nn.Module:
        """The model that is validated and saved."""
        return self.model if self.average is None else self.average.module

    def _ended(self) -> bool:
        patience = self.config.patience
        early = patience is not None and self.best and self.epochs_validated > self.best.epoch + patience
        return bool(early) or self.epochs_validated == self.config.epochs

    def _count_epoch(self, evaluation: Evaluation) -> None:
        epoch, measure = self.epochs_validated, self.config.keep_best
        values = {f"val_{name}": value for name, value in vars(evaluation).items()}
        if measure is not None:
            self.best = (self.best or Best(measure, epoch, evaluation)).or_better(epoch, evaluation)
            values["best_epoch"] = self.best.epoch
        self._log(self.steps_done, epoch=epoch, **values)
        self.epochs_validated += 1

    def _best_is_now(self) -> bool:
        """Whether the model is that after the best epoch."""
        position = (self.loader.epoch, self.loader.iteration)
        return self.best is not None and position == (self.best.epoch + 1, 0)

    def _require_best(self) -> None:
        """Raise an error unless the weights of the best epoch are in their file, or still in the state."""
        if self.best is None or self._best_is_now():
            return
        if not self.folder.best.exists():
            raise RunError(
                f"{self.folder.best} does not exist, expected the weights after epoch {self.best.epoch + 1}: "
                "put the file back or begin again in another folder"
            )
        require_whole(self.folder.best)

    def _save_weights(self, path: Path) -> None:
        save_weights(path, strip_adversarial_bn(copy.deepcopy(self.trained)), self.info)

    def _batches(self) -> Iterator[Batch]:
        """The rest of the epoch, or until a rank is asked to stop. If one rank has no batch, all raise its
        error. In both cases the position is that after the last batch.

        Between two batches ranks have one exchange on the host, while a GPU computes the step before it.
        """
        batches = iter(self.loader)
        while True:
            position = self.loader.epoch, self.loader.iteration
            batch, error = None, None
            try:
                batch = next(batches, None)
            except UserError as caught:
                error = caught
            started = time.perf_counter()
            asked = self.stop is not None and self.stop.requested
            # Signals reach ranks in different steps.
            stopping, failing = self._settle(flags=(asked, error is not None), leave=1)
            if self.unsettled:
                self.unsettled[-1].about["step_seconds"] += time.perf_counter() - started
            if stopping or failing:
                self.loader.epoch, self.loader.iteration = position
            if failing:
                raise ranks.first_error(error)
            self.stopping = stopping
            if batch is None or stopping:
                return
            yield batch

    def _log(self, step: int, **values) -> None:
        if ranks.first():
            line = {"step": step, **values, "time": round(time.time(), 3)}
            self.metrics.append(**line)
            self.trackers.add(line)

    def _train_step(self, batch: Batch, **about: float) -> None:
        """Train on a batch. The host does not wait for the results: a GPU still computes."""
        started = time.perf_counter()
        clips, labels = self._on_device(batch)
        if len(labels) < (parts := self.config.accumulate):
            # Ranks meet in every part, so none may be empty.
            again = torch.arange(parts, device=self.device) % len(labels)
            clips, labels = clips[again], labels[again]
        (self.reduced or self.optimizer).zero_grad()
        try:
            with autocast(self.device, self.config.precision):
                scalars = self._accumulate_grads(clips, labels)
        except SingleValueError:
            raise RunError(
                f"step {self.steps_done + 1} has a single good clip, of which a batch norm of "
                f"{self.config.model} gets a single value per channel, expected more: replace the bad clips, "
                f"or choose a larger size than {self.config.size}"
            ) from None
        limit = self.config.clip_grad
        if limit:
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        else:
            gradients = [parameter.grad for parameter in self.model.parameters()]
            norm = nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.steps_done += 1
        copied = _Scalars(scalars | {"grad_norm": norm}, self.device)
        about |= {"wait_seconds": batch.wait, "step_seconds": time.perf_counter() - started}
        self.unsettled.append(_Unsettled(self.steps_done, copied, len(labels), about))

    def _on_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The clips and labels of a batch, on a GPU copied from pinned memory while it computes the step
        before, which the host does not wait for."""
        if self.copying is None:
            return batch.clips.to(self.device), batch.labels.to(self.device)
        with torch.cuda.stream(self.copying):
            clips = batch.clips.to(self.device, non_blocking=True)
            labels = batch.labels.to(self.device, non_blocking=True)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self.copying)
        for tensor in (clips, labels):
            tensor.record_stream(computing)  # or its memory would be given away too early
        return clips, labels

    def _accumulate_grads(self, clips: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The gradient of a batch over all ranks, part by part, each of which weighs as many clips as it has.
        -> the scalars of the batch on this rank."""
        parts, found = self.config.accumulate, dict[str, Tensor]()
        xs, ys = clips.tensor_split(parts), labels.tensor_split(parts)
        for number, (x, y) in enumerate(zip(xs, ys, strict=True), 1):
            share = len(y) / len(labels)
            backward = functools.partial(_backward_of, share)
            out: StepOutput
            if self.reduced is None:
                out = self.step.accumulate_grads(x, y, self.generator, backward)
            else:
                out = self.reduced.accumulate_grads(x, y, self.generator, backward, last=number == parts)
            scalars: dict[str, Any] = {**out}
            scalars["correct"] = (scalars.pop("logits").argmax(1) == y).sum()
            for name, value in scalars.items():
                value = value * share if name in _MEANS and parts > 1 else value
                found[name] = found[name] + value if name in found else value
        return found

    def _settle(self, flags: Sequence[bool] = (), leave: int = 0) -> list[bool]:
        """Log the steps that are not logged yet, without the last ``leave``; all ranks do so in one exchange.
        -> whether any rank raises each of the ``flags``.

        RunError if the loss or the gradient of one is not finite. By then it has moved the weights, and the
        steps after it have too: nothing is saved before all steps are settled.
        """
        due, self.unsettled = self.unsettled[: -leave or None], self.unsettled[-leave:] if leave else []
        values = [float(flag) for flag in flags]
        for step in due:
            values += [*step.scalars.read(), step.clips]
        totals = iter(ranks.total(values) if values else ())
        raised = [next(totals) > 0 for _ in flags]
        for step in due:
            self._log_step(step, {name: next(totals) for name in step.scalars.names}, int(next(totals)))
        return raised

    def _log_step(self, of: _Unsettled, totals: dict[str, float], clips: int) -> None:
        measured = {
            name: value / ranks.count() if name in _MEANS else value for name, value in totals.items()
        }
        if not (math.isfinite(measured["loss"]) and math.isfinite(measured["grad_norm"])):
            raise RunError(
                f"step {of.step}: loss {measured['loss']}, gradient norm {measured['grad_norm']}, "
                f"expected finite values; {self._kept()}"
            )
        self.measured = measured
        self.waiting.add(of.about["wait_seconds"], of.about["step_seconds"])
        if self.progress is None or self.stop is None:  # a dry run
            return
        self._log(of.step, **of.about, **measured, clips=clips)
        try:
            self.progress.update(of.step, f"loss {measured['loss']:.3f}")
        except OutputError:  # after the state is saved, the next line raises it again
            self.stop.requested = True

    def _kept(self) -> str:
        kept = self.progress is not None and self.folder.state.exists()
        return f"{self.folder.path} keeps the state before" if kept else "nothing was saved"

    def _fingerprint(self) -> dict[str, str]:
        """All that the result of the run depends on, as text by the names of the configuration; and the
        clips, labels and sizes of its data, as checksums."""
        free = names_of(*FREE_ON_RESUME) | ({"epochs"} if self.config.epochs_may_grow else set())
        fixed = sorted(names_of(*Scope) - free)
        found = {name: quoted(absolute(getattr(self.config, name))) for name in fixed}
        for split, loader in (("train", self.loader), ("validation", self.validation)):
            manifest = loader.manifest
            content = repr((manifest.classes, [(clip.id, clip.label) for clip in manifest.clips]))
            found[f"{split} clips or labels"] = _crc(content)
            found[f"{split} {_SIZES}"] = _crc(repr([clip.bytes for clip in manifest.clips]))
        return found

    def _data_lines(self) -> dict[str, str]:
        """The data of each split in words, with the checksums of :meth:`_fingerprint`."""
        found, checksums = {}, self._fingerprint()
        for split, loader in (("train", self.loader), ("validation", self.validation)):
            labels, sizes = checksums[f"{split} clips or labels"], checksums[f"{split} {_SIZES}"]
            found[f"{split} data"] = f"{len(loader.manifest.clips)} clips, labels {labels}, sizes {sizes}"
        return found

    def _generators(self) -> dict[str, torch.Generator]:
        generators = {"cpu": torch.default_generator, "attack": self.generator}
        if self.device.type == "cuda":
            generators["cuda"] = torch.cuda.default_generators[self.device.index or 0]
        own = "" if ranks.first() else f".rank{ranks.rank()}"
        return {name + own: generator for name, generator in generators.items()}

    def save(self) -> None:
        """Write the state of all ranks, each of which learns of the bad clips of the others.

        RunError if the last step or the model is not finite, which all ranks notice alike; the state before
        stays.
        """
        self._settle()
        models = dict.fromkeys((self.model, self.trained))
        if (name := next(filter(None, map(first_not_finite, models)), None)) is not None:
            raise RunError(
                f"step {self.steps_done} left a NaN or an infinity in {name}, expected finite values; "
                f"{self._kept()}"
            )
        for loader in (self.loader, self.validation):
            loader.quarantined = ranks.union(loader.quarantined)
        states = {name: generator.get_state() for name, generator in self._generators().items()}
        states = ranks.union(states)
        if not ranks.first():
            return
        position = {
            "step": self.steps_done,
            "metrics": [self.metrics.lines, self.metrics.checksum],
            "train": self.loader.state_dict(),
            "epochs_validated": self.epochs_validated,
            "best": None if self.best is None else dataclasses.asdict(self.best),
            "sharing": self._sharing(),
            "run": self._fingerprint(),
        }
        # The state counts on what comes before it, so that must outlast a power cut that the state outlasts.
        self.metrics.sync()
        quarantined = {"train": self.loader.quarantined, "validation": self.validation.quarantined}
        write_json(self.folder.quarantine, quarantined, indent=1)
        save_state(self.folder.state, self.model, self.optimizer, states, position, self.average)

    def _require_same_run(self, position: dict) -> None:
        """Raise RunError if a saved state is that of other values or data."""
        now, there = self._fingerprint(), position["run"]
        moved = now["data"] != there.get("data")
        changed = [name for name in now if now[name] != there.get(name)]
        # In the place where they were, data may be mended: other sizes are a sign of other data elsewhere.
        if changed := [name for name in changed if not (name == "data" if moved else name.endswith(_SIZES))]:
            raise RunError(
                f"{self.folder.state} is the state of another run, which differs in {', '.join(changed)}"
            )
        if moved:
            say(f"the data set was in {there['data']}, now it is in {now['data']}")

    def _restore(self) -> tuple[int, int]:
        """Put the saved state back in place; returns the number and the checksum of the lines of the metrics
        that it counts on."""
        position, states = load_state(self.folder.state, self.model, self.optimizer, self.average)
        ranks.from_first(lambda: self._require_same_run(position))
        self.steps_done, self.epochs_validated = position["step"], position["epochs_validated"]
        if self.epochs_validated > self.config.epochs:
            raise RunError(
                f"{self.folder.state} is the state after {self.epochs_validated} epochs, expected at most "
                f"epochs = {self.config.epochs}"
            )
        if (best := position["best"]) is not None:
            self.best = Best(best["measure"], best["epoch"], Evaluation(**best["evaluation"]))
        try:
            self.loader.load_state_dict(position["train"])
        except ValueError as error:
            raise RunError(f"{self.folder.path} cannot be resumed: {error}") from None
        self._restore_sharing(position, states)
        lines, checksum = position["metrics"]
        return lines, checksum

    def _sharing(self) -> dict[str, Any]:
        """How ranks share a step, by names."""
        values = {name: getattr(self.config, name) for name in sorted(names_of(Scope.SHARING))}
        return {"ranks": ranks.count()} | values

    def _restore_sharing(self, position: dict, states: dict[str, Tensor]) -> None:
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
                moment = self.loader.epoch, self.steps_done
                generator.manual_seed(ranks.own_seed(self.config.seed, *moment))

    def _finish(self, predictions: list[Prediction]) -> Result:
        self._save_weights(self.folder.weights)
        steps = [line for line in self.folder.read_metrics() if "loss" in line]
        # The first step pays for allocations and compilation.
        seconds = statistics.median(line["step_seconds"] for line in steps[1:] or steps)
        attacked = sum(line.get("attacked", 0) for line in steps) / sum(line["clips"] for line in steps)
        write_predictions(self.folder.predictions, predictions, self.info.classes)
        result = Result(self.folder.weights, score(predictions), seconds, attacked, self.best)
        values = dataclasses.asdict(result) | {"weights": str(result.weights)}
        write_json(self.folder.result, values, indent=1)
        return result
