"""A data set small enough to be trained on in seconds, and the command line in this process."""

from functools import partial

import pytest
from run_command import error_of, output_of

from taf_fast.data.synth import write_ssv2


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """8 classes, 24 training and 8 validation videos of 48 x 36 pixels."""
    root = tmp_path_factory.mktemp("dataset") / "ssv2"
    write_ssv2(root, train_per_class=3, val_per_class=1, size=(48, 36), frames=(12, 16), seed=3)
    return root


@pytest.fixture
def output(capsys, monkeypatch):
    return partial(output_of, capsys, monkeypatch)


@pytest.fixture
def error(capsys, monkeypatch):
    return partial(error_of, capsys, monkeypatch)
