"""Order, resumption, ranks and independence of everything that must not matter."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from taf_fast.data import Batch, ClipLoader, DataError, Manifest, TrainingView, read_ssv2, scan
from taf_fast.errors import MissingDependency

SETTINGS = {"num_segments": 8, "size": 32, "batch_size": 4, "train": True}


def loader(manifest, **options) -> ClipLoader:
    return ClipLoader(manifest, **SETTINGS | options)


def assert_equal(actual: list[Batch], expected: list[Batch]) -> None:
    assert [batch.ids for batch in actual] == [batch.ids for batch in expected]
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a.clips, b.clips) and torch.equal(a.labels, b.labels)


def test_batches(clean):
    loading = loader(clean, batch_size=5)
    assert len(loading) == 4
    batches = list(loading)
    assert len(batches) == 4 and (loading.epoch, loading.iteration) == (1, 0)
    for batch in batches:
        assert batch.clips.shape == (5, 8, 32, 32, 3) and batch.clips.dtype == torch.uint8
        assert batch.labels.shape == (5,) and batch.labels.dtype == torch.int64
        assert len(batch.ids) == 5 and batch.wait >= 0


def test_evaluation_takes_every_clip_in_order_and_is_the_same_every_epoch(clean):
    loading = loader(clean, train=False, batch_size=5, seed=1)
    first, second = list(loading), list(loading)
    assert [name for batch in first for name in batch.ids] == [clip.id for clip in clean.clips]
    assert [len(batch.ids) for batch in first] == [5, 5, 5, 5, 4]
    assert_equal(second, first)
    assert_equal(list(loader(clean, train=False, batch_size=5, seed=2)), first)


def test_clips_of_all_formats_come_in_the_order_of_the_manifest(mixed):
    (batch,) = loader(mixed, train=False, batch_size=24)
    assert batch.ids == [clip.id for clip in mixed.clips]
    assert batch.labels.tolist() == [clip.label for clip in mixed.clips]


def test_training_differs_between_epochs_and_seeds(clean, by_id):
    loading = loader(clean, seed=1)
    first, second, other = by_id(loading), by_id(loading), by_id(loader(clean, seed=2))
    assert list(first) != list(second) and list(first) != list(other)
    for different in (second, other):
        assert sum(torch.equal(first[name], different[name]) for name in first) < len(first) / 4


def test_fewer_clips_than_a_batch_are_delivered(clean):
    (batch,) = loader(clean, batch_size=100)
    assert len(batch.ids) == 24


@pytest.mark.parametrize(("train", "sizes"), [(True, [10, 10]), (False, [10, 10, 4])])
def test_training_leaves_out_the_incomplete_last_batch(clean, seed, train, sizes):
    batches = list(loader(clean, train=train, seed=seed, batch_size=10))
    assert [len(batch.ids) for batch in batches] == sizes


def test_batches_stay_intact_while_later_ones_are_decoded(clean):
    loading = loader(clean)
    batches = [(batch.clips, batch.clips.clone()) for _ in range(5) for batch in loading]
    assert all(torch.equal(held, copied) for held, copied in batches)


@pytest.mark.parametrize("option", [{"threads": 1}, {"threads": 5}, {"batch_size": 1}, {"batch_size": 24}])
def test_pixels_depend_on_neither_threads_nor_batch_size(clean, option, seed, by_id, assert_same_clips):
    expected = by_id(loader(clean, seed=seed))
    assert_same_clips(by_id(loader(clean, seed=seed, **option)), expected)


@pytest.mark.parametrize("train", [True, False])
def test_ranks_share_the_clips_of_one_process(clean, train, seed, by_id, assert_same_clips):
    alone = by_id(loader(clean, train=train, seed=seed))
    ranks = [loader(clean, train=train, seed=seed, rank=r, world_size=2, batch_size=3) for r in (0, 1)]
    assert len(ranks[0]) == len(ranks[1]) == 4
    first, second = map(by_id, ranks)
    assert not first.keys() & second.keys()
    assert_same_clips(first | second, alone)


def with_bad_clips(copied_root) -> Manifest:
    """One clip with a known defect and three that only decoding finds."""
    manifest = scan(read_ssv2(copied_root, "train"))
    clips = list(manifest.clips)
    clips[2] = replace(clips[2], defect="known")
    for index in (3, 11, 19):
        path = clips[index].path
        path.write_bytes(path.read_bytes()[:500].ljust(clips[index].bytes, b"\0"))
    return Manifest(manifest.classes, tuple(clips))


def assert_resumes(manifest, bad: tuple[int, int], **options) -> None:
    """At every batch of two epochs, in which ``bad`` (least, most) clips are quarantined."""
    options = {"quarantine_limit": 0.5} | options
    uninterrupted = loader(manifest, **options)
    expected, states = [], [uninterrupted.state_dict()]
    for _ in range(2):
        for batch in uninterrupted:
            expected.append(batch)
            states.append(uninterrupted.state_dict())
    # Every epoch leaves out the incomplete last batch: a bad clip may be in it both times.
    assert bad[0] <= len(uninterrupted.quarantined) <= bad[1]
    for delivered, state in enumerate(states):
        resumed = loader(manifest, **options)
        resumed.load_state_dict(json.loads(json.dumps(state)))
        rest = list(resumed)
        while resumed.epoch < 2:
            rest += list(resumed)
        assert_equal(rest, expected[delivered:])
        assert resumed.state_dict() == uninterrupted.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("damaged", [False, True])
def test_resumed_loaders_deliver_what_an_uninterrupted_one_does(clean, copied_root, damaged, seed):
    manifest = with_bad_clips(copied_root) if damaged else clean
    assert_resumes(manifest, (2, 4) if damaged else (0, 0), seed=seed)


@pytest.mark.slow
def test_resuming_with_every_format_and_choice(copied_mixed, seed):
    clips = list(copied_mixed.clips)
    clips[2] = replace(clips[2], defect="known")
    for index in (4, 5, 6):
        path = clips[index].path
        for file in path.iterdir() if path.is_dir() else [path]:
            file.write_bytes(file.read_bytes()[:500].ljust(file.stat().st_size, b"\0"))
    view = TrainingView("shared", "random_resized", flip=True, swap=((0, 1),), colour=True)
    assert_resumes(Manifest(copied_mixed.classes, tuple(clips)), (2, 4), seed=seed, view=view)


def test_leaving_the_loop_continues_after_the_last_delivered_batch(clean, seed):
    expected = list(loader(clean, seed=seed))
    loading, delivered = loader(clean, seed=seed), []
    while loading.epoch == 0:
        for batch in loading:
            delivered.append(batch)
            if len(delivered) % 2:
                break
    assert_equal(delivered, expected)


def test_moving_the_position_drops_what_is_under_way(clean, seed):
    loading = loader(clean, seed=seed)
    start = loading.state_dict()
    first = list(loading)
    next(iter(loading))
    loading.load_state_dict(start)
    assert_equal(list(loading), first)
    next(iter(loading))
    loading.epoch, loading.iteration = 0, 2
    assert_equal(list(loading), first[2:])


def test_states_of_other_loaders_are_refused(clean):
    loading = loader(clean)
    state = loading.state_dict()
    for wrong, message in (
        ({"seed": 1}, "seed 1"),
        ({"iteration": 99}, "iteration 99 of 6"),
        ({"quarantined": {"unknown": "bad"}}, "1 unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            loading.load_state_dict(state | wrong)
    with pytest.raises(DataError, match="24 of 24"):
        loading.load_state_dict(state | {"quarantined": {clip.id: "bad" for clip in clean.clips}})


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"size": 0},
        {"num_segments": 0},
        {"threads": 0},
        {"world_size": 0},
        {"rank": 1},
        {"rank": -1},
        {"seed": -1},
        {"quarantine_limit": 1.5},
    ],
)
def test_impossible_arguments_are_named(clean, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        loader(clean, **wrong)


def test_clips_shorter_than_their_samples_repeat_the_first_frame(clean, by_id):
    short = {clip.id for clip in clean.clips if clip.frames < 16}
    assert 0 < len(short) < len(clean.clips)
    for name, clip in by_id(loader(clean, num_segments=16)).items():
        still = all(torch.equal(frame, clip[0]) for frame in clip)
        assert still == (name in short)


def test_too_few_clips_for_the_ranks(clean):
    with pytest.raises(DataError, match="24 good clips are too few for 25 ranks"):
        loader(clean, world_size=25)


def test_scan_arguments_and_progress(clean_root):
    dataset, calls = read_ssv2(clean_root, "validation"), []
    scan(dataset, workers=3, progress=lambda *count: calls.append(count))
    assert calls == [(done, 16) for done in range(1, 17)]
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        scan(dataset, workers=0)


@pytest.mark.slow
def test_dali_is_imported_by_need_and_its_absence_explained(clean, monkeypatch):
    code = "import sys, taf_fast.data; sys.exit('nvidia.dali' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(MissingDependency, match=r"pip install taf_fast\[dali\]"):
        loader(clean, decoder="dali")
