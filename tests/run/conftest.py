"""A data set small enough to be trained on in seconds."""

import pytest

from taf_fast.data.synth import write_ssv2


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """8 classes, 24 training and 8 validation videos of 48 x 36 pixels."""
    root = tmp_path_factory.mktemp("dataset") / "ssv2"
    write_ssv2(root, train_per_class=3, val_per_class=1, size=(48, 36), frames=(12, 16), seed=3)
    return root
