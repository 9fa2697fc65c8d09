"""The decoder that a run takes by itself, and the algorithms of its device."""

import os

import pytest
import torch
import yaml
from run_command import finetune_arguments

from taf_fast.data import ClipLoader, read_dataset, scan
from taf_fast.errors import UserError
from taf_fast.precision import algorithms, best_precision
from taf_fast.run.decoder_choice import decoders_of, fastest_decoder


@pytest.fixture
def load(dataset):
    manifest = scan(read_dataset(dataset, "train"))

    def load(decoder):
        return ClipLoader(manifest, 2, 32, 4, train=True, decoder=decoder, threads=1)

    return load


@pytest.mark.parametrize("faster", ["pyav", "dali"])
def test_the_fastest_is_taken(load, faster):
    """By a clock that is slow while another decoder is at work."""
    pytest.importorskip("nvidia.dali")
    now, step = 0, 0

    def loaded(decoder):
        nonlocal step
        step = 1 if decoder == faster else 3
        return load(decoder)

    def clock():
        nonlocal now
        now += step
        return now

    chosen, line = fastest_decoder(loaded, ("pyav", "dali"), clock)
    assert chosen == faster and line.startswith(f"decoder {faster}, by clips per second: pyav ")
    assert " dali " in line


def test_a_decoder_that_does_not_work_is_left_out(load):
    def loaded(decoder):
        if decoder == "dali":
            raise UserError("is not installed")
        return load(decoder)

    chosen, line = fastest_decoder(loaded, ("dali", "pyav"))
    assert chosen == "pyav" and line.endswith("dali: is not installed")
    with pytest.raises(UserError, match="is not installed"):
        fastest_decoder(loaded, ("dali",))
    assert decoders_of(torch.device("cpu")) == ("pyav", "dali")
    assert decoders_of(torch.device("cuda")) == ("pyav", "dali", "mixed")


@pytest.mark.slow
def test_a_run_keeps_its_decoder(dataset, tmp_path, output):
    out = tmp_path / "out"
    arguments = finetune_arguments(dataset, out, decoder="auto")
    printed = output(*arguments)
    chosen = yaml.safe_load((out / "config.yaml").read_text())["decoder"]
    assert f"decoder {chosen}, by clips per second: " in printed
    assert "by clips per second" not in output(*arguments, "--resume")
    assert yaml.safe_load((out / "config.yaml").read_text())["decoder"] == chosen


def test_algorithms_are_put_back(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    with algorithms(torch.device("cuda"), deterministic=False):
        assert torch.backends.cudnn.benchmark and torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
        assert not torch.are_deterministic_algorithms_enabled()
    with algorithms(torch.device("cpu"), deterministic=True):
        assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.benchmark and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert torch.get_float32_matmul_precision() == before[1]
    assert (torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()) == before
    assert not torch.are_deterministic_algorithms_enabled()
    assert best_precision(torch.device("cpu")) == "float32"
