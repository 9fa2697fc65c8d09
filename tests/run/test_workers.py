"""A run whose clips worker processes decode."""

import multiprocessing

import pytest

from taf_fast.run.config import FinetuneConfig
from taf_fast.run.finetune import dry_run, finetune


@pytest.mark.slow
def test_the_weights_are_those_of_threads_and_no_worker_is_left(dataset, tmp_path):
    """With dropout, whose numbers come from the global generator."""
    before = multiprocessing.active_children()
    weights = []
    for option in ({"threads": 1}, {"workers": 2}):
        (name,) = option
        values = dict(data=dataset, out=tmp_path / name, model="tsm_resnet18", size=32, batch_size=8)
        config = FinetuneConfig(**values, **option, lr=0.01, epochs=2, dropout=0.5, augment="none")
        dry_run(config)
        weights.append(finetune(config).weights.read_bytes())
        assert multiprocessing.active_children() == before
    assert weights[0] == weights[1]
