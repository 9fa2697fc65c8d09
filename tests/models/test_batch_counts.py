"""Counters of batch norms that are moved together are where they would be."""

import copy

import pytest
import torch
from torch import nn

from taf_fast import add_adversarial_bn, adversarial_path
from taf_fast.bench.counts import Launch, _Counter
from taf_fast.models.batch_counts import counted_at_once


class Norms(nn.Module):
    """Batch norms that run twice, once and never, one in eval mode and one that reads its counter."""

    def __init__(self):
        super().__init__()
        self.twice, self.once, self.never, self.still = (nn.BatchNorm2d(3) for _ in range(4))
        self.average, self.bare = (
            nn.BatchNorm2d(3, momentum=None),
            nn.BatchNorm2d(3, track_running_stats=False),
        )
        self.still.eval()

    def forward(self, x, error=False):
        x = self.bare(self.still(self.twice(self.twice(x))))
        if error:
            raise KeyError
        return self.average(self.once(x))


def test_counters_and_statistics(generator):
    expected, x = Norms(), torch.randn(2, 3, 4, 4, generator=generator)
    actual = copy.deepcopy(expected)
    for _ in range(2):
        expected(x)
        with counted_at_once(actual):
            actual(x)
    assert actual.twice.num_batches_tracked == 4 and actual.never.num_batches_tracked == 0
    torch.testing.assert_close(actual.state_dict(), expected.state_dict(), rtol=0, atol=0)
    with pytest.raises(KeyError):
        expected(x, error=True)
    with pytest.raises(KeyError), counted_at_once(actual):
        actual(x, error=True)
    torch.testing.assert_close(actual.state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_on_either_path(generator):
    model, x = (
        add_adversarial_bn(nn.Sequential(nn.BatchNorm2d(3))),
        torch.randn(2, 3, 4, 4, generator=generator),
    )
    with counted_at_once(model):
        model(x)
    for _ in range(2):
        with adversarial_path(model), counted_at_once(model):
            model(x)
    norm = model[0]
    assert (norm.num_batches_tracked, norm.adversarial.num_batches_tracked) == (1, 2)
    assert norm.num_batches_tracked is not norm.adversarial.num_batches_tracked


def test_one_launch_counts_them_all():
    model, x = nn.Sequential(*(nn.BatchNorm2d(3) for _ in range(50))), torch.ones(2, 3, 4, 4)
    counter = _Counter(attacked=0)
    with counter, counted_at_once(model):
        model(x)
    launches = [event.operation for event in counter.events if isinstance(event, Launch)]
    assert launches == ["native_batch_norm"] * 100 + ["_foreach_add_"]
