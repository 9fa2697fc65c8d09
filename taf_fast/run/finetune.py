"""The fine-tuning loop."""

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from taf_fast.data import (
    Batch,
    ClipLoader,
    DataError,
    Manifest,
    VideoDataset,
    read_dataset,
    read_manifest,
    scan,
)
from taf_fast.dual_batch_norm import add_adversarial_bn, strip_adversarial_bn
from taf_fast.files import write_atomically, write_text
from taf_fast.memory_format import channels_last
from taf_fast.precision import autocast
from taf_fast.run import ranks
from taf_fast.run.checkpoint import ModelInfo, load_state, save_state, save_weights
from taf_fast.run.config import FinetuneConfig, RunError
from taf_fast.run.environment import environment
from taf_fast.run.evaluate import Evaluation, Prediction, predict, score, write_predictions
from taf_fast.run.metrics import MetricsLog, read_metrics
from taf_fast.run.model import build_model
from taf_fast.run.optim import build_sgd, set_learning_rate
from taf_fast.run.progress import Progress
from taf_fast.run.stopping import StopRequest
from taf_fast.step import PlainStep, TAFStep

# What is measured on each rank for its own clips, as means over them; the rest is counted.
_MEANS = {"loss", "clean_loss", "adv_loss", "grad_norm"}


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished run leaves: the weights, without adversarial batch norms, and their scores."""

    weights: Path
    evaluation: Evaluation
    seconds_per_step: float
    attacked_share: float


def finetune(config: FinetuneConfig, resume: bool = False, trust_checkpoint: bool = False) -> Result | None:
    """Run ``config`` to its end, or until SIGTERM or SIGINT asks to stop.

    Ranks (:func:`taf_fast.run.ranks.joined`) share the clips of every step; what they share otherwise is such
    that their models, batch statistics included, are always equal.

    Args:
        config: ``config.checkpoint`` None trains from random weights.
        resume: go on from the state in ``config.out``, if there is one; the result is then bit for
            bit that of a run that was never interrupted, on the same machine with as many threads and ranks.
        trust_checkpoint: run the code a ``torch.save`` checkpoint may hold.

    Returns:
        The result, or None if the run was asked to stop; its state is then in ``config.out``.

    Raises:
        RunError, DataError, CheckpointError: input that cannot work, or a loss that is no longer finite.
    """
    with StopRequest() as stop:
        run = _Run(config, resume, trust_checkpoint)
        try:
            return run.train(stop)
        except DataError:
            run.save()  # the weights are sound: with mended data the run can go on from here
            raise


class _Run:
    def __init__(self, config: FinetuneConfig, resume: bool, trust_checkpoint: bool):
        self.config = config
        self.folder = Path(config.out)
        self.state_path = self.folder / "state.safetensors"
        self._check_folder(resume)
        self.batch_size = ranks.share(config.batch_size)
        torch.manual_seed(config.seed)
        self.device = ranks.own_device(config.device)

        datasets = [read_dataset(config.data, split) for split in ("train", "validation")]
        if config.dataset not in (None, datasets[0].name):
            raise RunError(f"{config.data} holds {datasets[0].name}, expected {config.dataset}")
        self.model = build_model(
            datasets[0],
            config.model,
            config.num_segments,
            None if config.checkpoint is None else Path(config.checkpoint),
            config.class_order,
            trust_checkpoint,
            config.dropout,
            None if config.imagenet is None else Path(config.imagenet),
        )
        self.info = ModelInfo(
            config.model, datasets[0].classes, config.num_segments, config.size, self.model.options
        )
        train, validation = ranks.from_first(lambda: self._scan(datasets))
        self.loader = self._loader(train, train=True)
        self.validation = self._loader(validation, train=False)
        if config.attack() is not None:
            add_adversarial_bn(self.model)
        channels_last(self.model.to(self.device)).train()
        self.optimizer = self._build_optimizer()
        self.running_statistics = [
            buffer
            for name, buffer in self.model.named_buffers()
            if name.endswith(("running_mean", "running_var"))
        ]
        if not ranks.first():  # the first goes on as a process alone does
            torch.manual_seed(ranks.own_seed(config.seed))
        self.generator = torch.Generator(self.device).manual_seed(ranks.own_seed(config.seed))
        self.step = self._build_step()

        # Only now is it known that the run can work, and that all ranks have looked into the folder.
        self.metrics = MetricsLog(self.folder / "metrics.jsonl")
        if ranks.first():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / "config.yaml", config.write)
            write_text(self.folder / "environment.json", json.dumps(environment(self.device), indent=1))
        self.steps_done = lines = 0
        if self.state_path.exists():
            lines = self._restore()
        if ranks.first():
            self.metrics.rewind(lines)

    def _check_folder(self, resume: bool) -> None:
        if (self.folder / "config.yaml").exists():
            if not resume:
                raise RunError(f"{self.folder} holds a run already: resume it, or choose another folder")
            self.config.require_same_run(FinetuneConfig.read(self.folder / "config.yaml"))

    def _build_optimizer(self) -> torch.optim.SGD:
        config = self.config
        try:
            return build_sgd(
                self.model, config.lr, config.momentum, config.weight_decay, config.fc_lr5, config.nesterov
            )
        except ValueError as error:
            raise RunError(f"{config.model}: {error}") from None

    def _scan(self, datasets: list[VideoDataset]) -> list[Manifest]:
        known = read_manifest(self.config.data, self.config.manifest)
        return [scan(dataset, known=known) for dataset in datasets]

    def _loader(self, manifest: Manifest, train: bool) -> ClipLoader:
        config = self.config
        return ClipLoader(
            manifest,
            config.num_segments,
            config.size,
            self.batch_size,
            train=train,
            seed=config.seed,
            threads=config.threads,
            rank=ranks.rank(),
            world_size=ranks.count(),
            decoder=config.decoder,
            pin_memory=self.device.type == "cuda",
            quarantine_limit=config.quarantine_limit,
            view=config.view(),
        )

    def _build_step(self) -> nn.Module:
        config = self.config
        attack = config.attack()
        if attack is None:
            return PlainStep(self.model, config.compile, config.mixing())
        return TAFStep(self.model, attack, config.alpha, config.composition, config.compile)

    def train(self, stop: StopRequest) -> Result | None:
        config, predictions = self.config, None
        total = config.epochs * len(self.loader)
        with Progress(self.folder.name, total) as progress:
            while self.loader.epoch < config.epochs:
                epoch = self.loader.epoch
                lr = config.learning_rate(epoch)
                set_learning_rate(self.optimizer, lr)
                for batch in self._batches():
                    measured = self._train_step(batch.clips, batch.labels)
                    self.steps_done += 1
                    self._log(epoch=epoch, lr=lr, wait_seconds=batch.wait, **measured)
                    progress.update(self.steps_done, f"loss {measured['loss']:.3f}")
                    # Signals reach ranks in different steps.
                    stopping = ranks.anywhere(stop.requested)
                    if stopping or self.steps_done % config.checkpoint_every == 0:
                        self.save()
                    if stopping:
                        progress.line(f"stopped at step {self.steps_done}, its state is in {self.state_path}")
                        return None
                predictions = predict(self.model, self.validation, self.device)
                evaluation = score(predictions)
                self._log(epoch=epoch, **{f"val_{k}": v for k, v in vars(evaluation).items()})
                progress.line(
                    f"{self.folder.name} epoch {epoch + 1}/{config.epochs}: validation top-1 "
                    f"{100 * evaluation.top1:.1f} %, loss {evaluation.loss:.3f}"
                )
                self.save()
        predictions = predictions or predict(self.model, self.validation, self.device)
        return ranks.from_first(lambda: self._finish(predictions))

    def _batches(self) -> Iterator[Batch]:
        """The rest of the epoch. When a rank cannot give a batch, all raise its error and stay before it."""
        batches = iter(self.loader)
        while True:
            iteration = self.loader.iteration
            try:
                with ranks.together():
                    batch = next(batches, None)
            except DataError:
                self.loader.iteration = iteration
                raise
            if batch is None:
                return
            yield batch

    def _log(self, **values) -> None:
        if ranks.first():
            self.metrics.append(step=self.steps_done, **values)

    def _train_step(self, clips: Tensor, labels: Tensor) -> dict[str, float]:
        started = time.perf_counter()
        # From pinned memory, while the host goes on.
        clips, labels = (tensor.to(self.device, non_blocking=True) for tensor in (clips, labels))
        self.optimizer.zero_grad()
        with autocast(self.device, self.config.precision):
            out = self.step.accumulate_grads(clips, labels, self.generator)
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        ranks.average_(gradients + self.running_statistics)
        # Without a limit the norm is still measured.
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_grad or math.inf)
        correct = (out.pop("logits").argmax(1) == labels).sum()
        scalars = out | {"grad_norm": norm, "correct": correct}
        # One transfer for all of them.
        values = torch.stack([value.to(self.device).double() for value in scalars.values()]).tolist()
        *values, clips = ranks.total([*values, len(labels)])
        measured = {
            name: value / ranks.count() if name in _MEANS else value
            for name, value in zip(scalars, values, strict=True)
        }
        if not (math.isfinite(measured["loss"]) and math.isfinite(measured["grad_norm"])):
            raise RunError(
                f"step {self.steps_done + 1}: loss {measured['loss']}, gradient norm "
                f"{measured['grad_norm']}, expected finite values; {self.folder} keeps the state before"
            )
        self.optimizer.step()
        return measured | {"clips": int(clips), "step_seconds": time.perf_counter() - started}

    def _generators(self) -> dict[str, torch.Generator]:
        generators = {"cpu": torch.default_generator, "attack": self.generator}
        if self.device.type == "cuda":
            generators["cuda"] = torch.cuda.default_generators[self.device.index or 0]
        own = "" if ranks.first() else f".rank{ranks.rank()}"
        return {name + own: generator for name, generator in generators.items()}

    def save(self) -> None:
        """Write the state, of all ranks; from here on each knows the bad clips of all."""
        for loader in (self.loader, self.validation):
            loader.quarantined = ranks.union(loader.quarantined)
        states = {name: generator.get_state() for name, generator in self._generators().items()}
        states = ranks.union(states)
        if not ranks.first():
            return
        position = {
            "step": self.steps_done,
            "metrics_lines": self.metrics.lines,
            "train": self.loader.state_dict(),
            "ranks": ranks.count(),
        }
        save_state(self.state_path, self.model, self.optimizer, states, position)
        quarantined = {"train": self.loader.quarantined, "validation": self.validation.quarantined}
        write_text(self.folder / "quarantine.json", json.dumps(quarantined, indent=1))

    def _restore(self) -> int:
        """How many lines of the metrics belong to the state."""
        position, states = load_state(self.state_path, self.model, self.optimizer)
        # States of earlier versions are of one process.
        if (earlier := position.get("ranks", 1)) != ranks.count():
            raise RunError(f"{self.folder} cannot be resumed: it has {earlier} ranks, now {ranks.count()}")
        for name, generator in self._generators().items():
            generator.set_state(states[name])
        self.steps_done = position["step"]
        try:
            self.loader.load_state_dict(position["train"])
        except ValueError as error:
            raise RunError(f"{self.folder} cannot be resumed: {error}") from None
        return position["metrics_lines"]

    def _finish(self, predictions: list[Prediction]) -> Result:
        weights = self.folder / "model.safetensors"
        save_weights(weights, strip_adversarial_bn(self.model), self.info)
        steps = [line for line in read_metrics(self.metrics.path) if "loss" in line]
        # The first step pays for allocations and compilation.
        seconds = statistics.median(line["step_seconds"] for line in steps[1:] or steps)
        attacked = sum(line.get("attacked", 0) for line in steps) / sum(line["clips"] for line in steps)
        write_predictions(self.folder / "predictions.csv", predictions)
        result = Result(weights, score(predictions), seconds, attacked)
        write_text(self.folder / "result.json", json.dumps(dataclasses.asdict(result), default=str, indent=1))
        return result
