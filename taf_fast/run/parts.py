"""What a run consists of on a rank: its data loaders, model, optimiser and step."""

import contextlib
import copy
import dataclasses
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from taf_fast.data import ClipLoader, Manifest, VideoDataset, read_dataset
from taf_fast.errors import ClassesError, RunError
from taf_fast.models.dual_batch_norm import add_adversarial_bn, strip_adversarial_bn
from taf_fast.models.memory_format import channels_last
from taf_fast.plain import say
from taf_fast.precision import algorithms
from taf_fast.process import ranks
from taf_fast.run.average import moving_average
from taf_fast.run.checkpoint import ModelInfo, save_weights
from taf_fast.run.config import FinetuneConfig
from taf_fast.run.decoder_choice import decoders_of, fastest_decoder
from taf_fast.run.equal_values import require_equal_values
from taf_fast.run.folder import RunFolder
from taf_fast.run.model import build_model, norm_of_single_values
from taf_fast.run.optim import build_optimizer
from taf_fast.run.optimizer_step import OptimizerStep
from taf_fast.run.scanned import scanned_by_first
from taf_fast.run.values import AUTO


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts of a run on this rank, all of ``config``, which names the decoder that was chosen.

    ``model`` is on ``device`` in train mode, with adversarial batch norms if clips are attacked; ``average``
    is its moving average, if there is one; ``generator`` is that of the attacks.
    """

    config: FinetuneConfig
    device: torch.device
    train: ClipLoader
    validation: ClipLoader
    model: nn.Module
    info: ModelInfo
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    generator: torch.Generator
    optimizer_step: OptimizerStep

    @property
    def trained(self) -> nn.Module:
        """The model that is validated and saved."""
        return self.model if self.average is None else self.average.module

    @property
    def manifests(self) -> dict[str, Manifest]:
        """The clips of each split."""
        return {"train": self.train.manifest, "validation": self.validation.manifest}

    def save_weights(self, path: Path) -> None:
        """Write the trained model, without adversarial batch norms."""
        save_weights(path, strip_adversarial_bn(copy.deepcopy(self.trained)), self.info)


def build(config: FinetuneConfig, stack: contextlib.ExitStack, trust_checkpoint: bool) -> Parts:
    """Make the parts of a run, which last until ``stack`` ends; write nothing. All ranks must call this.

    Args:
        trust_checkpoint: run the code that a ``torch.save`` checkpoint may hold.

    Raises:
        RunError, DataError, CheckpointError: see :func:`taf_fast.run.finetune.finetune`.
    """
    require_equal_values(config)
    if ranks.first() and (doubt := config.doubt()) is not None:
        say(doubt)
    part = ranks.share(config.batch_size, config.accumulate)
    torch.manual_seed(config.seed)
    device = ranks.own_device(config.device)
    stack.enter_context(algorithms(device, config.deterministic))

    datasets = [read_dataset(config.data, split) for split in ("train", "validation")]
    if config.dataset not in (None, datasets[0].name):
        raise RunError(f"{config.data} holds {datasets[0].name}, expected {config.dataset}")
    model = _model(config, datasets[0], trust_checkpoint)
    info = ModelInfo(config.model, datasets[0].classes, config.num_segments, config.size, model.options)
    # A bad validation clip is to be found before the first epoch; bad training clips are replaced.
    train, validation = scanned_by_first(datasets, config.manifest, [True, False])
    clips = part * config.accumulate
    decoder = ranks.from_first(lambda: _decoder(config, train, clips, device))
    config = dataclasses.replace(config, decoder=decoder)
    if device.type == "cuda" and ranks.first():
        say(f"{torch.cuda.get_device_name(device)}: {_computing(config)}")
    loader = _loader(config, train, clips, device, train=True)
    stack.callback(loader.close)
    validation_loader = _loader(config, validation, clips, device, train=False)
    stack.callback(validation_loader.close)
    if min(part, max(1, len(train.good) // ranks.count() // config.accumulate)) == 1:
        _require_batches_of_one(config, model)
    if config.attack() is not None:
        add_adversarial_bn(model)
    channels_last(model.to(device)).train()
    optimizer = _optimizer(config, model)
    average = None if config.ema is None else moving_average(model, config.ema)
    if not ranks.first():  # the first draws the same numbers as a single process
        torch.manual_seed(ranks.own_seed(config.seed))
    generator = torch.Generator(device).manual_seed(ranks.own_seed(config.seed))
    step = OptimizerStep(config, model, optimizer, average, generator)
    return Parts(config, device, loader, validation_loader, model, info, optimizer, average, generator, step)


def _model(config: FinetuneConfig, dataset: VideoDataset, trust_checkpoint: bool) -> nn.Module:
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


def _decoder(config: FinetuneConfig, train: Manifest, clips: int, device: torch.device) -> str:
    """The decoder of the run: that of its earlier part, or if it is open, the fastest."""
    if config.decoder != AUTO:
        return config.decoder
    folder = RunFolder(config.out)
    if folder.exists():
        return folder.read_config().decoder

    def load(decoder: str) -> ClipLoader:
        return _loader(dataclasses.replace(config, decoder=decoder), train, clips, device, train=True)

    decoder, why = fastest_decoder(load, decoders_of(device))
    say(why)
    return decoder


def _loader(
    config: FinetuneConfig, manifest: Manifest, clips: int, device: torch.device, train: bool
) -> ClipLoader:
    return ClipLoader(
        manifest,
        config.num_segments,
        config.size,
        clips,
        train=train,
        seed=config.seed,
        workers=config.workers,
        threads=config.threads,
        rank=ranks.rank(),
        world_size=ranks.count(),
        decoder=config.decoder,
        pin_memory=device.type == "cuda",
        quarantine_limit=config.quarantine_limit,
        view=config.view(),
    )


def _computing(config: FinetuneConfig) -> str:
    """How a GPU computes the steps of a run, in words."""
    precision = "float32 (TF32)" if config.precision == "float32" else config.precision
    ways = {"compiled": config.compile, "deterministic": config.deterministic}
    return ", ".join(["channels_last", precision, *(way for way, chosen in ways.items() if chosen)])


def _require_batches_of_one(config: FinetuneConfig, model: nn.Module) -> None:
    clip = torch.zeros(1, config.num_segments, 3, config.size, config.size)
    if norm := norm_of_single_values(model, clip):
        raise RunError(
            f"{norm} of {config.model}, a batch norm, gets a single value per channel, expected more: "
            f"steps of more than one clip per process, or a larger size than {config.size}"
        )


def _optimizer(config: FinetuneConfig, model: nn.Module) -> torch.optim.Optimizer:
    try:
        return build_optimizer(model, config)
    except ValueError as error:
        raise RunError(f"{config.model}: {error}") from None
