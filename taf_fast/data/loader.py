"""Batches of decoded clips that can be interrupted, resumed and shared among ranks."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch

from taf_fast.data.clip import Clip, Manifest
from taf_fast.data.decoding.dali import DaliFetcher
from taf_fast.data.decoding.fetch import ClipFetcher, Fetched, Fetcher
from taf_fast.data.views.crops import full_size
from taf_fast.data.views.planner import ClipPlan, epoch_order, evaluation_plans, plan
from taf_fast.data.views.view import DEFAULT_VIEW, ONE_VIEW, EvaluationViews, TrainingView
from taf_fast.errors import DataError

DECODERS = ("pyav", "dali", "mixed")

# Batches being decoded while the caller works on one.
AHEAD = 2


@dataclass(frozen=True)
class Batch:
    """Clips uint8 ``[B, T, size, size, 3]`` (RGB), labels int64 ``[B]``, ids, and the seconds that the caller
    waited for the batch.

    In evaluation with V views, clips are ``[B * V, ...]``: the views of one video lie next to each other.
    """

    clips: torch.Tensor
    labels: torch.Tensor
    ids: list[str]
    wait: float


@dataclass(frozen=True)
class _Job:
    """A batch being decoded: its (epoch, iteration), and the clip and label of each row."""

    position: tuple[int, int]
    clips: list[Clip]
    labels: list[int]
    fetched: Future[Fetched]


class ClipLoader:
    """Iterates over the clips of a manifest, one epoch per loop.

    Training takes random views (``view``) of the clips in an order shuffled by (seed, epoch) and leaves out
    the incomplete last step of all ranks, unless it is the only one. Evaluation takes centre crops of all
    clips in the order of the manifest. A label belongs to the view: mirroring can change the class.

    ``size`` is the side of the delivered frames in pixels for centre and training crops; three crops cover
    more and are larger. ``batch_size`` is the number of clips per step on this rank, ``threads`` the number
    of decoding threads.

    ``decoder`` is "pyav" (PyAV decodes videos, PIL decodes JPEG, PyTorch resizes), "dali" (DALI decodes the
    codecs its CPU build supports and resizes everything; its pixels differ by a level or two) or "mixed"
    (DALI on the current GPU, which then holds the batches). With ``pin_memory``, "pyav" delivers batches in
    page-locked memory, from which copies to a GPU overlap with its work.

    ``views`` are the views of evaluation: every clip is decoded once for each of them. ``batch_size`` counts
    views, but a batch holds at least one clip with all its views.

    ``epoch`` and ``iteration`` are the position of the next batch. A loop that is left early continues in
    the next loop after the last delivered batch, and so does another process after ``load_state_dict``, with
    the same batches, bit for bit, as without the interruption. If a loop is left at the last batch of an
    epoch, the next loop ends at once and finishes the epoch.

    Clips that turn out bad are quarantined (``quarantined``: reason by id, including the manifest's defects)
    and left out of their batch; the order of the others does not change. Evaluation skips a batch without
    any good clip. In training, where all ranks need the same number of batches, the next good clip takes the
    place of such a batch. DataError if all clips of the manifest are bad, or a larger fraction than
    ``quarantine_limit``, not counting those that a cache left out: the batch that showed this is not
    delivered, and the next loop tries it again.
    ValueError for impossible arguments.
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
        self.quarantine_limit = quarantine_limit
        self.view = view
        self.views = views
        self.epoch = 0
        self.iteration = 0
        self._left_out = {clip.id for clip in manifest.clips if clip.left_out}
        self.quarantined = manifest.defects
        self._check(self.quarantined)
        # Positions in the manifest: order and plans refer to them, whatever is quarantined later.
        self._good = np.array([i for i, clip in enumerate(manifest.clips) if clip.defect is None])
        if train and len(self._good) < world_size:
            raise DataError(f"{len(self._good)} good clips are too few for {world_size} ranks")
        self._order: tuple[int, list[np.ndarray]] = (-1, [])
        self._jobs: deque[_Job] = deque()
        side = full_size(size) if views.crops == 3 else size
        self._fetcher: Fetcher
        if decoder == "pyav":
            self._fetcher = ClipFetcher(side, threads, pin_memory)
        else:
            gpu = torch.cuda.current_device() if decoder == "mixed" else None
            self._fetcher = DaliFetcher(manifest.good, side, self.batch_size * len(views), threads, gpu)

    def __len__(self) -> int:
        """Batches per epoch on this rank, including those that evaluation skips."""
        return len(self._batches())

    def __iter__(self) -> Iterator[Batch]:
        while self.iteration < len(self):
            started = time.perf_counter()
            batch = self._finish(self._next_job())
            if batch is None and self.train:
                for job in self._substitutes():
                    batch = self._finish(job)
                    if batch is not None:
                        break
            self.iteration += 1
            if batch is not None:
                yield Batch(*batch, time.perf_counter() - started)
        self.epoch += 1
        self.iteration = 0

    def state_dict(self) -> dict:
        """The position after the last delivered batch and the quarantined clips, as values that JSON can
        hold."""
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "iteration": self.iteration,
            "quarantined": dict(self.quarantined),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continues where the loader that gave ``state`` was; manifest and arguments must be the same.

        ValueError if the state belongs to another seed or to other data.
        """
        if state["seed"] != self.seed:
            raise ValueError(f"the state has seed {state['seed']}, the loader has seed {self.seed}")
        unknown = state["quarantined"].keys() - {clip.id for clip in self.manifest.clips}
        if unknown or not 0 <= state["iteration"] <= len(self):
            raise ValueError(
                f"the state belongs to other data or batches: iteration {state['iteration']} of {len(self)}, "
                f"{len(unknown)} unknown clips"
            )
        self.epoch = state["epoch"]
        self.iteration = state["iteration"]
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
        """The job at the current position; those after it are being decoded meanwhile."""
        if self._jobs and self._jobs[0].position != (self.epoch, self.iteration):
            self._drop_jobs()  # the position was moved
        upcoming = range(self.iteration + len(self._jobs), min(self.iteration + 1 + AHEAD, len(self)))
        self._jobs.extend(self._start(iteration, self._batches()[iteration]) for iteration in upcoming)
        return self._jobs.popleft()

    def _finish(self, job: _Job) -> tuple[torch.Tensor, torch.Tensor, list[str]] | None:
        """Clips, labels and ids of a job's batch; None if no clip is good."""
        fetched = job.fetched.result()
        failures = {job.clips[row].id: reason for row, reason in fetched.failures.items()}
        # If this raises, the batch counts as not delivered: once the data are mended, the loop goes on there.
        self._check(self.quarantined | failures)
        self.quarantined |= failures
        # A clip is delivered with all its views or not at all.
        good = [i for i, row in enumerate(fetched.rows) if job.clips[row].id not in failures]
        if not good:
            return None
        clips = fetched.clips if len(good) == len(fetched.rows) else fetched.clips[good]
        rows = [fetched.rows[i] for i in good[:: len(self.views)]]
        return clips, torch.tensor([job.labels[row] for row in rows]), [job.clips[row].id for row in rows]

    def _substitutes(self) -> Iterator[_Job]:
        """Jobs of one clip each: first this rank's clips from here on, then all clips."""
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
        clips: list[Clip] = []
        plans: list[ClipPlan] = []
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
            return evaluation_plans(clip, self.num_segments, self.size, self.view.sampling, self.views)
        return [
            plan(clip, position, self.num_segments, self.size, self.seed, self.epoch, self.train, self.view)
        ]

    def _check(self, quarantined: dict[str, str]) -> None:
        counted = [item for item in quarantined.items() if item[0] not in self._left_out]
        bad, total = len(counted), len(self.manifest.clips) - len(self._left_out)
        if not total:
            raise DataError(f"there are no clips for {'training' if self.train else 'validation'}")
        if bad == total:
            problem = "no good clip"
        elif bad > self.quarantine_limit * total:
            limit = self.quarantine_limit
            problem = f"more than the limit of {100 * limit:.4g}% (--quarantine-limit {limit:g})"
        else:
            return
        first = "; ".join(f"{name}: {reason}" for name, reason in counted[:10])
        more = f"; and {bad - 10} more" if bad > 10 else ""
        raise DataError(f"{bad} of {total} clips are bad, {problem}: {first}{more}")
