"""Batches of decoded clips that can be interrupted, resumed and shared among ranks."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch

from .decoding.dali_fetch import DaliFetcher
from .decoding.fetch import ClipFetcher, Fetched
from .errors import DataError
from .scanning.manifest import Clip, Manifest
from .views.crops import full_size
from .views.planner import ClipPlan, epoch_order, evaluation_plans, plan
from .views.view import DEFAULT_VIEW, ONE_VIEW, EvaluationViews, TrainingView

DECODERS = ("pyav", "dali", "mixed")

# Batches being decoded while the caller works on one.
AHEAD = 2


@dataclass(frozen=True)
class Batch:
    """Clips uint8 ``[B, T, size, size, 3]`` (RGB), labels int64 ``[B]``, ids, and the seconds waited.

    In evaluation with V views clips are ``[B * V, ...]``: those of one video lie together.
    """

    clips: torch.Tensor
    labels: torch.Tensor
    ids: list[str]
    wait: float


@dataclass(frozen=True)
class _Job:
    """A batch in the making; ``position`` is its (epoch, iteration), clips and labels those of its rows."""

    position: tuple[int, int]
    clips: list[Clip]
    labels: list[int]
    fetched: "Future[Fetched]"


class ClipLoader:
    """Iterates over the clips of a manifest, one epoch per loop.

    Training takes random views of the clips, as ``view`` says, in an order shuffled by (seed, epoch);
    evaluation takes the centres in the order of the manifest. Labels are those of the views: a mirrored clip
    can be of another class. ``size`` is the side of the delivered frames in pixels (of a centre crop: three
    crops show more and are larger), ``batch_size`` the clips per step of this rank, ``threads`` the decoding
    threads. ``drop_last`` leaves out the incomplete last step of all ranks, unless it is the only one; None
    is True in training.

    ``decoder`` is "pyav" (videos by PyAV, JPEG by PIL, resizing by PyTorch), "dali" (DALI decodes the codecs
    that its CPU build knows and resizes all; its pixels differ by a level or two) or "mixed" (likewise on the
    current GPU, where batches then are; not yet run on one). ``pin_memory`` has the batches of "pyav" in
    page-locked memory, from which copies to a GPU overlap with its work.

    ``views`` are those of evaluation: every clip is decoded once for each of them, and ``batch_size`` counts
    them all, though a batch has at least one clip with all its views.

    ``epoch`` and ``iteration`` are the position of the next batch. A loop that is left early is continued by
    the next one after the last delivered batch, and so is one in another process after ``load_state_dict``:
    batches are the same, bit for bit, as without the interruption. When the last batch of an epoch was
    delivered but the loop left, the next loop ends at once and the epoch is over.

    Clips that turn out bad are quarantined (``quarantined``: reason by id, including the manifest's defects)
    and missing from their batch; the order of the others does not change. A batch that has no other is
    skipped in evaluation; in training, where all ranks need equally many, the next good clip takes its place.
    DataError when more than ``quarantine_limit`` (a fraction) of the manifest's clips are bad, or all
    of them: the batch that showed it is not delivered, and the next loop tries it again. ValueError for
    impossible arguments.
    """

    def __init__(
        self,
        manifest: Manifest,
        num_segments: int,
        size: int,
        batch_size: int,
        train: bool,
        seed: int = 0,
        threads: int = 2,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool | None = None,
        quarantine_limit: float = 0.1,
        view: TrainingView = DEFAULT_VIEW,
        views: EvaluationViews = ONE_VIEW,
        decoder: str = "pyav",
        pin_memory: bool = False,
    ):
        at_least_one = {
            "num_segments": num_segments,
            "size": size,
            "batch_size": batch_size,
            "threads": threads,
            "world_size": world_size,
        }
        for name, value in at_least_one.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0..{world_size - 1}, got {rank}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        if not 0 <= quarantine_limit <= 1:
            raise ValueError(f"quarantine_limit must be a fraction in 0..1, got {quarantine_limit}")
        if decoder not in DECODERS:
            raise ValueError(f"decoder must be one of {', '.join(DECODERS)}, got {decoder!r}")
        if decoder == "mixed" and not torch.cuda.is_available():
            raise ValueError("decoder mixed needs a GPU that PyTorch can use")
        if train and len(views) > 1:
            raise ValueError(f"views must be one in training, got {len(views)}")
        self.manifest = manifest
        self.num_segments = num_segments
        self.size = size
        self.batch_size = max(1, batch_size // len(views))
        self.train = train
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.drop_last = train if drop_last is None else drop_last
        self.quarantine_limit = quarantine_limit
        self.view = view
        self.views = views
        self.epoch = 0
        self.iteration = 0
        self.quarantined = manifest.defects
        self._check(self.quarantined)
        # Positions in the manifest: what the order and the plans refer to, whatever is quarantined later.
        self._good = np.array([i for i, clip in enumerate(manifest.clips) if clip.defect is None])
        if train and len(self._good) < world_size:
            raise DataError(f"{len(self._good)} good clips are too few for {world_size} ranks")
        self._order: tuple[int, list[np.ndarray]] = (-1, [])
        self._jobs: deque[_Job] = deque()
        side = full_size(size) if views.crops == 3 else size
        if decoder == "pyav":
            self._fetcher = ClipFetcher(side, threads, pin_memory)
        else:
            gpu = torch.cuda.current_device() if decoder == "mixed" else None
            self._fetcher = DaliFetcher(manifest.good, side, self.batch_size * len(views), threads, gpu)

    def __len__(self) -> int:
        """Batches per epoch on this rank, counting those that evaluation finds empty."""
        return len(self._batches())

    def __iter__(self) -> Iterator[Batch]:
        while self.iteration < len(self):
            started = time.perf_counter()
            batch = self._finish(self._next_job())
            if batch is None and self.train:
                batch = next(filter(None, map(self._finish, self._substitutes())))
            self.iteration += 1
            if batch is not None:
                yield Batch(*batch, time.perf_counter() - started)
        self.epoch += 1
        self.iteration = 0

    def state_dict(self) -> dict:
        """The position after the last delivered batch and the quarantine, as plain JSON-able values."""
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "iteration": self.iteration,
            "quarantined": dict(self.quarantined),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continues where the loader that gave ``state`` stood; it needs the same manifest and arguments.

        ValueError when the state is of another seed or of other data.
        """
        if state["seed"] != self.seed:
            raise ValueError(f"the state is of seed {state['seed']}, the loader has seed {self.seed}")
        unknown = state["quarantined"].keys() - {clip.id for clip in self.manifest.clips}
        if unknown or not 0 <= state["iteration"] <= len(self):
            raise ValueError(
                f"the state is of other data or batches: iteration {state['iteration']} of {len(self)}, "
                f"{len(unknown)} unknown clips"
            )
        self.epoch, self.iteration = state["epoch"], state["iteration"]
        self.quarantined = {**self.manifest.defects, **state["quarantined"]}
        self._drop_jobs()
        self._check(self.quarantined)

    def _batches(self) -> list[np.ndarray]:
        """This rank's batches of the current epoch, as positions in the manifest."""
        if self._order[0] != self.epoch:
            batches = epoch_order(
                len(self._good),
                self.seed,
                self.epoch,
                shuffle=self.train,
                rank=self.rank,
                world_size=self.world_size,
                batch_size=self.batch_size,
                drop_last=self.drop_last,
            )
            self._order = (self.epoch, [self._good[batch] for batch in batches])
        return self._order[1]

    def _next_job(self) -> _Job:
        """The job of the current position, with those after it under way."""
        if self._jobs and self._jobs[0].position != (self.epoch, self.iteration):
            self._drop_jobs()  # the position was moved
        upcoming = range(self.iteration + len(self._jobs), min(self.iteration + 1 + AHEAD, len(self)))
        self._jobs.extend(self._start(iteration, self._batches()[iteration]) for iteration in upcoming)
        return self._jobs.popleft()

    def _finish(self, job: _Job) -> tuple[torch.Tensor, torch.Tensor, list[str]] | None:
        """Clips, labels and ids of a job's batch; None when no clip is good."""
        fetched = job.fetched.result()
        failures = {job.clips[row].id: reason for row, reason in fetched.failures.items()}
        # When this raises, the batch counts as not delivered: mended, the loop can go on from it.
        self._check(self.quarantined | failures)
        self.quarantined |= failures
        # A clip needs all its views.
        good = [i for i, row in enumerate(fetched.rows) if job.clips[row].id not in failures]
        if not good:
            return None
        clips = fetched.clips if len(good) == len(fetched.rows) else fetched.clips[good]
        rows = [fetched.rows[i] for i in good[:: len(self.views)]]
        return clips, torch.tensor([job.labels[row] for row in rows]), [job.clips[row].id for row in rows]

    def _substitutes(self) -> Iterator[_Job]:
        """Jobs of one clip each: of those that come next on this rank, then of all."""
        batches = self._batches()
        order = batches[self.iteration :] + batches[: self.iteration] + [self._good]
        for position in np.concatenate(order):
            if self.manifest.clips[position].id not in self.quarantined:
                yield self._start(self.iteration, [position])

    def _drop_jobs(self) -> None:
        for job in self._jobs:
            job.fetched.cancel()
        self._jobs.clear()

    def _start(self, iteration: int, positions: Iterable[int]) -> _Job:
        clips, plans = [], []
        for position in map(int, positions):
            clip = self.manifest.clips[position]
            if clip.id not in self.quarantined:
                views = self._plan(clip, position)
                clips += [clip] * len(views)
                plans += views
        labels = [plan.label for plan in plans]
        return _Job((self.epoch, iteration), clips, labels, self._fetcher.submit(clips, plans))

    def _plan(self, clip: Clip, position: int) -> list[ClipPlan]:
        if len(self.views) > 1:
            return evaluation_plans(clip, self.num_segments, self.view.sampling, self.views)
        settings = (self.num_segments, self.size, self.seed, self.epoch, self.train, self.view)
        return [plan(clip, position, *settings)]

    def _check(self, quarantined: dict[str, str]) -> None:
        bad, total = len(quarantined), len(self.manifest.clips)
        if bad == total:
            problem = "no good clip"
        elif bad > self.quarantine_limit * total:
            problem = f"more than the limit of {self.quarantine_limit:.0%}"
        else:
            return
        first = [f"\n  {name}: {reason}" for name, reason in list(quarantined.items())[:10]]
        more = f"\n  and {bad - 10} more" if bad > 10 else ""
        raise DataError(f"{bad} of {total} clips are bad, {problem}:" + "".join(first) + more)
