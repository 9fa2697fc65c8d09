"""Checkpoints that hold something else than the numbers of a model: one error that names what is wrong."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from taf_fast import models
from taf_fast.models import CheckpointError
from taf_fast.run.checkpoint import read_info

HEAD, TRUNK = "module.new_fc.weight", "module.base_model.conv1.weight"


@pytest.fixture(scope="module")
def weights():
    return models.export(models.build("tsm_resnet18", 3, 4), "official")["state_dict"]


def refused(path, strict=True) -> str:
    """The error of everything that reads a checkpoint, which leaves the model as it was."""
    model = models.build("tsm_resnet18", 3, 4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        models.inspect(path)
        models.load(model, path, strict=strict)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    message = str(error.value)
    assert str(path) in message and "\n" not in message
    return message


@pytest.mark.slow
@pytest.mark.parametrize("format", ["pth", "safetensors"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w * math.nan, "fc.weight has a NaN or an infinity, expected numbers"),
        (lambda w: w.double() * 1e300, "fc.weight has a NaN or an infinity, expected numbers"),
        (lambda w: w.int(), "fc.weight is of torch.int32, expected floating-point numbers"),
        (lambda w: w.bool(), "fc.weight is of torch.bool, expected floating-point numbers"),
        (lambda w: w.to(torch.float8_e4m3fn), "new_fc.weight is of torch.float8_e4m3fn, expected a dense"),
        (lambda w: w.to(torch.complex64), "new_fc.weight is of torch.complex64, expected a dense"),
        (lambda w: torch.tensor(1.0), "new_fc.weight is [], expected 2 dimensions"),
        (lambda w: w[0].clone(), "new_fc.weight is [512], expected 2 dimensions"),
        (lambda w: w[:2].clone(), "has 2 classes, expected 3"),
        (lambda w: w[:0].clone(), "has no classes, expected at least 1"),
    ],
)
def test_odd_numbers_and_shapes(weights, tmp_path, change, message, format):
    path = tmp_path / f"w.{format}"
    (torch.save if format == "pth" else save_file)(weights | {HEAD: change(weights[HEAD])}, path)
    assert message in refused(path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, about quantised and sparse tensors
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.to_sparse(), "is sparse (torch.sparse_coo)"),
        (lambda w: w.to_sparse_csr(), "is sparse (torch.sparse_csr)"),
        (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), "is of torch.qint8"),
        (lambda w: w.to("meta"), "is without values, on device meta"),
        (lambda w: torch.zeros(1, 1).expand(10**9, 512), "is larger than what the file holds of it"),
    ],
)
def test_odd_tensors(weights, tmp_path, change, message):
    torch.save(weights | {HEAD: change(weights[HEAD])}, tmp_path / "w.pth")
    assert f"{HEAD} {message}, expected a dense tensor of numbers" in refused(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda w: w | {3: w[HEAD]}, "holds no state dict: 3 is Tensor, expected names and tensors"),
        (lambda w: {"state_dict": {"state_dict": w}}, "'state_dict' is dict, expected names and tensors"),
        (lambda w: w | {"a": {"b": w[HEAD]}}, "'a' is dict, expected names and tensors"),
        (lambda w: list(w.values()), "holds no state dict, expected names and tensors"),
        (lambda w: {}, "holds no known model"),
    ],
)
def test_odd_contents(weights, tmp_path, content, message):
    torch.save(content(weights), tmp_path / "w.pth")
    assert message in refused(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html>", "is neither a torch.save file nor safetensors: it begins with b'<!'"),
        (b"", "is neither a torch.save file nor safetensors: it is empty"),
        (b"PK\3\4" + bytes(99), "cannot be read: "),
        (b"\x80\2" + bytes(99), "cannot be read: "),
        ((2**62).to_bytes(8, "little") + b"{" + bytes(99), "is truncated or not a safetensors file"),
    ],
)
def test_other_files(tmp_path, content, message, name):
    (tmp_path / name).write_bytes(content)
    assert message in refused(tmp_path / name)


@pytest.mark.slow
def test_the_content_counts_and_not_the_name(weights, tmp_path):
    shared = weights | {
        name: weights[TRUNK] for name in weights if weights[name].shape == weights[TRUNK].shape
    }
    save_file({name: tensor.clone() for name, tensor in shared.items()}, tmp_path / "a.pth")
    torch.save(shared, tmp_path / "b.safetensors")
    torch.save(shared, tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    for path in tmp_path.iterdir():
        model = models.build("tsm_resnet18", 3, 4)
        assert not models.load(model, path).problems
        assert torch.equal(model.fc.weight, weights[HEAD]), path


@pytest.mark.slow
def test_what_is_not_loaded_may_be_odd(weights, tmp_path):
    torch.save(weights | {"other": torch.tensor([1, 2])}, tmp_path / "w.pth")
    model = models.build("tsm_resnet18", 3, 4)
    assert models.load(model, tmp_path / "w.pth", strict=False).unexpected == ("other",)


GOOD = {"model": "tsm_resnet18", "classes": ["a", "b", "c"], "num_segments": 4, "size": 32}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"model": "tsm_resnet18"}, "'classes'"),
        ([], "list indices must be integers"),
        (GOOD | {"model": "x"}, "model must be one of tsm_resnet18"),
        (GOOD | {"model": ["x"]}, "model must be str, got ['x']"),
        (GOOD | {"num_segments": 10**20}, "num_segments must be between 1 and 1024"),
        (GOOD | {"size": "a"}, "size must be int, got 'a'"),
        (GOOD | {"classes": 3}, "'int' object is not iterable"),
        (GOOD | {"classes": [1]}, "classes must be names"),
        (GOOD | {"classes": []}, "classes must be names"),
        (GOOD | {"options": 3}, "'int' object has no attribute 'items'"),
        (
            GOOD | {"options": {"temporal_stride": True}},
            "tsm_resnet18 has no options {'temporal_stride': True}",
        ),
        (GOOD | {"options": {"mixed_shortcut": 1}}, "tsm_resnet18 has no options {'mixed_shortcut': 1}"),
        (GOOD | {"more": 1}, "ModelInfo.__init__() got an unexpected keyword argument 'more'"),
        ("[" * 100_000, "it is nested too deeply"),
        ('{"a": NaN}', "NaN is no number of JSON"),
        ("", "Expecting value"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_damaged_headers(tmp_path, header, message):
    text = header if isinstance(header, str) else json.dumps(header)
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors", metadata={"taf_fast": text})
    with pytest.raises(CheckpointError) as error:
        read_info(tmp_path / "w.safetensors")
    assert f"w.safetensors has a damaged header: {message}" in str(error.value)


def test_headers_with_options(tmp_path):
    for options in ({}, {"mixed_shortcut": True}):
        text = json.dumps(GOOD | {"options": options})
        save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors", metadata={"taf_fast": text})
        assert read_info(tmp_path / "w.safetensors").options == options
