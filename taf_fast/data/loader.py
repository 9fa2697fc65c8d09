"""Batches of decoded clips that can be interrupted, resumed and shared among ranks."""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch

from .errors import DataError
from .fetch import ClipFetcher, Fetched
from .manifest import Clip, Manifest
from .planner import epoch_order, plan
from .sources import kind
from .view import DEFAULT_VIEW, TrainingView

# Batches being decoded while the caller works on one.
AHEAD = 2


@dataclass(frozen=True)
class Batch:
    """Clips uint8 ``[B, T, size, size, 3]`` (RGB), labels int64 ``[B]``, ids, and the seconds waited."""

    clips: torch.Tensor
    labels: torch.Tensor
    ids: list[str]
    wait: float


@dataclass(frozen=True)
class _Job:
    """A batch in the making; ``position`` is its (epoch, iteration)."""

    position: tuple[int, int]
    clips: list[Clip]
    labels: list[int]
    fetched: "Future[Fetched]"


class ClipLoader:
    """Iterates over the clips of a manifest, one epoch per loop.

    Training takes random views of the clips, as ``view`` says, in an order shuffled by (seed, epoch) and
    drops the incomplete last batch (unless it is the only one); evaluation takes the centres in the order of
    the manifest and keeps it. Labels are those of the views: a mirrored clip can be of another class.
    ``size`` is the side of the delivered frames in pixels, ``batch_size`` the clips per step of this rank,
    ``threads`` the decoding threads.

    ``epoch`` and ``iteration`` are the position of the next batch. A loop that is left early is continued by
    the next one after the last delivered batch, and so is one in another process after ``load_state_dict``:
    batches are the same, bit for bit, as without the interruption. When the last batch of an epoch was
    delivered but the loop left, the next loop ends at once and the epoch is over.

    Clips that turn out bad are quarantined (``quarantined``: reason by id, including the manifest's defects)
    and missing from their batch, which is skipped when it has no other; the order of the others does not
    change. DataError when more than ``quarantine_limit`` (a fraction) of the manifest's clips are bad, or all
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
        quarantine_limit: float = 0.1,
        view: TrainingView = DEFAULT_VIEW,
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
        self.manifest = manifest
        self.num_segments = num_segments
        self.size = size
        self.batch_size = batch_size
        self.train = train
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.quarantine_limit = quarantine_limit
        self.view = view
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
        kinds = {kind(clip) for clip in manifest.good}
        self._fetcher = ClipFetcher(kinds, size, batch_size, threads)

    def __len__(self) -> int:
        """Batches per epoch on this rank, counting those that turn out empty."""
        return len(self._batches())

    def __iter__(self) -> Iterator[Batch]:
        while self.iteration < len(self):
            started = time.perf_counter()
            job = self._next_job()
            fetched = job.fetched.result()
            failures = {job.clips[row].id: reason for row, reason in fetched.failures.items()}
            # When this raises, the batch counts as not delivered: mended, the loop can go on from it.
            self._check(self.quarantined | failures)
            self.quarantined |= failures
            self.iteration += 1
            if fetched.clips is not None:
                clips = [job.clips[row] for row in fetched.rows]
                labels = torch.tensor([job.labels[row] for row in fetched.rows])
                wait = time.perf_counter() - started
                yield Batch(fetched.clips, labels, [clip.id for clip in clips], wait)
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
                drop_last=self.train,
            )
            self._order = (self.epoch, [self._good[batch] for batch in batches])
        return self._order[1]

    def _next_job(self) -> _Job:
        """The job of the current position, with those after it under way."""
        if self._jobs and self._jobs[0].position != (self.epoch, self.iteration):
            self._drop_jobs()  # the position was moved
        upcoming = range(self.iteration + len(self._jobs), min(self.iteration + 1 + AHEAD, len(self)))
        self._jobs.extend(self._start(iteration) for iteration in upcoming)
        return self._jobs.popleft()

    def _drop_jobs(self) -> None:
        for job in self._jobs:
            job.fetched.cancel()
        self._jobs.clear()

    def _start(self, iteration: int) -> _Job:
        clips, plans = [], []
        for position in map(int, self._batches()[iteration]):
            clip = self.manifest.clips[position]
            if clip.id not in self.quarantined:
                settings = (self.num_segments, self.size, self.seed, self.epoch, self.train, self.view)
                clips.append(clip)
                plans.append(plan(clip, position, *settings))
        labels = [plan.label for plan in plans]
        return _Job((self.epoch, iteration), clips, labels, self._fetcher.submit(clips, plans))

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
