"""The plan for many GPUs: its model on values computed by hand, and its tables in the documentation."""

import importlib.util
from pathlib import Path

import pytest
import torch

from taf_fast.bench.counts import Launch, Wait
from taf_fast.bench.prediction import Card, predicted_ends

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scale():
    spec = importlib.util.spec_from_file_location("scale", ROOT / "benchmarks" / "scale.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_documentation_has_the_tables(scale):
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    summary, *_ = tables = list(scale.tables())
    assert summary in page
    for table in (scale.gpu_table(scale.gradients()), scale.data_table()):
        assert "\n".join(table) in page
    assert len(tables) == 2 + (2 + 3 * 3 * 2) + 1 + (2 + 3)


def test_exchange(scale):
    mega = 2**18  # elements of a MiB
    sizes = [mega, 5 * mega, 20 * mega, mega]
    assert list(scale.buckets(sizes)) == [(1 / 4, mega), (3 / 4, 25 * mega), (1.0, mega)]
    step, rate = scale.Step(100.0, 40.0), 2**20 * 1000  # a MiB takes a millisecond
    # Of 2 GPUs a MiB takes one: from 10 to 11, from 30 to 55 ms and until 56 ms after a backward of 40.
    assert scale.with_exchange(step, 2, rate, 4, sizes) == pytest.approx(116)
    # Of 4 GPUs it takes 1.5 ms: from 30 to 67.5 ms, and until 69.
    assert scale.with_exchange(step, 4, rate, 4, sizes) == pytest.approx(129)
    # Half the bytes: from 30 to 42.5 ms, and until 43; what ends before 40 is hidden but for the last bucket.
    assert scale.with_exchange(step, 2, rate, 2, sizes) == pytest.approx(103)
    assert scale.with_exchange(step, 2, 1000 * rate, 4, sizes) == pytest.approx(100.001)


def test_the_buckets_are_those_of_the_reduction(scale):
    """PyTorch's own assignment of the same tensors."""
    sizes = scale.gradients()
    tensors = [torch.empty(size, device="meta") for size in sizes]
    found, _ = torch.distributed._compute_bucket_assignment_by_size(tensors, list(scale.BUCKETS))
    expected = [elements for _, elements in scale.buckets(sizes)]
    assert sorted(sum(sizes[index] for index in bucket) for bucket in found) == sorted(expected)


def test_the_end_of_each_phase():
    card = Card("card", {"bfloat16": 100.0}, memory_rate=10.0, shortest=0.5, issue=1.0)
    events = [
        Launch("clean backward", "add", False, flops=0.0, bytes=30.0),  # issued at 1, done at 4
        Wait("attack", 1),
        Launch("adversarial backward", "add", False, flops=0.0, bytes=1.0),  # issued at 5, done at 5.5
    ]
    ends = predicted_ends(events, "bfloat16", card)
    assert ends == {"clean backward": 4.0, "attack": 4.0, "adversarial backward": 5.5}
