"""Batches of decoded clips that can be interrupted, resumed and shared among ranks."""

import multiprocessing
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from taf_fast.data.clip import Clip, Manifest
from taf_fast.data.cpus import usable_cpus
from taf_fast.data.decoding.dali import DaliFetcher
from taf_fast.data.decoding.fetch import ClipFetcher, Fetched, Fetcher, Request
from taf_fast.data.decoding.workers import WorkerFetcher
from taf_fast.data.views.crops import full_size
from taf_fast.data.views.planner import ClipPlan, epoch_order, evaluation_plans, plan
from taf_fast.data.views.view import DEFAULT_VIEW, ONE_VIEW, EvaluationViews, TrainingView
from taf_fast.errors import DataError

DECODERS = ("pyav", "dali", "mixed")

# Of fewer clips an epoch, threads have decoded a good part by the time worker processes have started.
FEW_CLIPS = 256
# Each takes four of the file descriptors, of which a process usually has 1024.
MOST_WORKERS = 64


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


class ClipLoader:
    """Iterates over the clips of a manifest, one epoch per loop.

    Training takes random views (``view``) of the clips in an order shuffled by (seed, epoch) and leaves out
    the incomplete last step of all ranks, unless it is the only one. Evaluation takes centre crops of all
    clips in the order of the manifest. A label belongs to the view: mirroring can change the class.

    ``size`` is the side of the delivered frames in pixels for centre and training crops; three crops cover
    more and are larger. ``batch_size`` is the number of clips per step on this rank.

    ``workers`` is the number of processes that decode, by default one for each CPU that this process may use
    (:func:`taf_fast.data.usable_cpus`), but none for few clips (less than 256 on this rank), for which
    starting them does not pay, nor in a daemonic process, which may start none. ``threads`` is the number of
    threads of this process that decode instead, which take its interpreter's time. What is delivered depends
    on neither of them, nor on a worker that dies and is replaced. DALI decodes in threads of its own, as
    many.

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
        threads: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        quarantine_limit: float = 0.1,
        view: TrainingView = DEFAULT_VIEW,
        views: EvaluationViews = ONE_VIEW,
        decoder: str = "pyav",
        pin_memory: bool = False,
        workers: int | None = None,
    ):
        at_least_one = {
            "num_segments": num_segments,
            "size": size,
            "batch_size": batch_size,
            "threads": threads,
            "workers": workers,
            "world_size": world_size,
        }
        for name, value in at_least_one.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if threads is not None and workers is not None:
            raise ValueError(f"workers must be none with {threads} threads, got {workers}")
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
        self._stream: Iterator[tuple[Request, Fetched]] | None = None
        self._stream_position = (-1, -1)
        side = full_size(size) if views.crops == 3 else size
        rows = self.batch_size * len(views)
        few = len(self._good) // world_size < FEW_CLIPS or multiprocessing.current_process().daemon
        self._fetcher: Fetcher
        if decoder != "pyav":
            gpu = torch.cuda.current_device() if decoder == "mixed" else None
            number = threads or workers or usable_cpus()
            self._fetcher = DaliFetcher(manifest.good, side, rows, number, gpu)
        elif threads is not None or (workers is None and few):
            self._fetcher = ClipFetcher(side, threads or usable_cpus(), pin_memory)
        else:
            number = workers or min(usable_cpus(), MOST_WORKERS)
            self._fetcher = WorkerFetcher(rows, num_segments, side, number, pin_memory, keep=train)

    def __len__(self) -> int:
        """Batches per epoch on this rank, including those that evaluation skips."""
        return len(self._batches())

    def __iter__(self) -> Iterator[Batch]:
        while self.iteration < len(self):
            started = time.perf_counter()
            batch = self._finish(*self._next())
            if batch is None and self.train:
                self._stream = None
                for request in self._substitutes():
                    batch = self._finish(*next(self._fetcher.fetch(iter([request]))))
                    if batch is not None:
                        break
            self.iteration += 1
            if batch is not None:
                yield Batch(*batch, time.perf_counter() - started)
        if self._stream is not None:
            next(self._stream, None)  # lets it see that there are no more
            self._stream = None
        self.epoch += 1
        self.iteration = 0

    def close(self) -> None:
        """Ends the worker processes now, and not when the loader is no longer used; the next loop starts
        others."""
        self._stream = None
        if isinstance(self._fetcher, WorkerFetcher):
            self._fetcher.close()

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
        self._stream = None
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

    def _next(self) -> tuple[Request, Fetched]:
        """The batch at the current position; those after it are being decoded meanwhile."""
        stream, self._stream = self._stream, None  # after an error, the next call begins anew
        if stream is None or self._stream_position != (self.epoch, self.iteration):
            stream = self._fetcher.fetch(map(self._request, self._batches()[self.iteration :]))
        batch = next(stream)
        self._stream, self._stream_position = stream, (self.epoch, self.iteration + 1)
        return batch

    def _finish(
        self, request: Request, fetched: Fetched
    ) -> tuple[torch.Tensor, torch.Tensor, list[str]] | None:
        """Clips, labels and ids of a batch; None if no clip is good."""
        failures = {request.clips[row].id: reason for row, reason in fetched.failures.items()}
        # If this raises, the batch counts as not delivered: once the data are mended, the loop goes on there.
        self._check(self.quarantined | failures)
        self.quarantined |= failures
        # A clip is delivered with all its views or not at all.
        good = [i for i, row in enumerate(fetched.rows) if request.clips[row].id not in failures]
        if not good:
            return None
        clips = fetched.clips if len(good) == len(fetched.rows) else fetched.clips[good]
        rows = [fetched.rows[i] for i in good[:: len(self.views)]]
        labels = torch.tensor([request.plans[row].label for row in rows])
        return clips, labels, [request.clips[row].id for row in rows]

    def _substitutes(self) -> Iterator[Request]:
        """Batches of one clip each: first this rank's clips from here on, then all clips."""
        batches = self._batches()
        order = batches[self.iteration :] + batches[: self.iteration] + [self._good]
        for position in np.concatenate(order):
            if self.manifest.clips[position].id not in self.quarantined:
                yield self._request([position])

    def _request(self, positions: Iterable[int]) -> Request:
        """The batch of the clips at ``positions`` in the manifest, without those that are quarantined."""
        clips: list[Clip] = []
        plans: list[ClipPlan] = []
        for position in map(int, positions):
            clip = self.manifest.clips[position]
            if clip.id not in self.quarantined:
                views = self._plan(clip, position)
                clips += [clip] * len(views)
                plans += views
        return Request(clips, plans)

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
