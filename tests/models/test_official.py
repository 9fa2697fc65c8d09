"""Our models against the official repositories' and MMAction2's own classes.

``official/*.json`` hold what those classes made of seeded weights and clips (``official/record.py`` ran
them): the names and shapes of their state dicts, and their logits. The weights are made again here.
"""

import json
from pathlib import Path

import pytest
import torch
from models.official.seeded_weights import clip, fill

from taf_fast import models

RECORDS = sorted((Path(__file__).parent / "official").glob("*.json"))


def read(path):
    record = json.loads(path.read_text())
    record["weights"] = fill({name: tuple(shape) for name, shape in record["shapes"].items()})
    record["name"] = record["model"].removesuffix("_t_stride")
    record["options"] = {"temporal_stride": True} if record["model"].endswith("_t_stride") else {}
    return record


@pytest.fixture(params=RECORDS, ids=lambda path: path.stem)
def record(request):
    return read(request.param)


def build(record):
    return models.build(record["name"], record["num_classes"], record["num_segments"], **record["options"])


def test_records_are_complete():
    assert {path.stem.rsplit("_", 1)[0] for path in RECORDS} >= {
        *(f"{name}_resnet50_official" for name in ("tsm", "gst", "gst_large", "tam", "tpn")),
        *(f"{name}_resnet50_mmaction2" for name in ("tsm", "tpn")),
    }


@pytest.mark.slow
def test_logits_and_way_back(record, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": record["weights"], "epoch": 1}, path)
    found = models.inspect(path)
    assert (found.model, found.num_classes) == (record["name"], record["num_classes"])

    model = build(record)
    report = models.load(model, path)
    assert not report.problems and set(report.loaded) == set(model.state_dict())
    model.eval()
    clips = clip(record["batch"], record["num_segments"], record["size"])
    with torch.no_grad():
        logits, auxiliary = model(clips), None
        if hasattr(model, "auxiliary_head"):
            auxiliary = model.auxiliary_head(*model.stages(clips))
    torch.testing.assert_close(logits, torch.tensor(record["logits"]), rtol=0, atol=1e-4)
    if "aux_logits" in record:
        torch.testing.assert_close(auxiliary, torch.tensor(record["aux_logits"]), rtol=0, atol=1e-4)

    if record["origin"] in ("official", "mmaction2"):
        back = models.export(model, record["origin"])["state_dict"]
        assert {name.removeprefix("module."): list(tensor.shape) for name, tensor in back.items()} == {
            name.removeprefix("module."): shape for name, shape in record["shapes"].items()
        }
        expected = {name.removeprefix("module."): tensor for name, tensor in record["weights"].items()}
        for name, tensor in back.items():
            assert torch.equal(tensor, expected[name.removeprefix("module.")]), name


@pytest.mark.parametrize(
    "family, origin",
    [
        *((family, "official") for family in ("tsm", "gst", "tam", "tpn")),
        ("tsm", "mmaction2"),
        ("tpn", "mmaction2"),
    ],
)
def test_prefixes_are_what_each_project_s_loader_takes(family, origin):
    """TSM's loader drops the first component of every name; the others load into the bare module."""
    options = {"mixed_shortcut": False} if (family, origin) == ("tpn", "mmaction2") else {}
    content = models.export(models.build(f"{family}_resnet18", 5, **options), origin)
    expected = (family, origin) == ("tsm", "official")
    assert all(name.startswith("module.") == expected for name in content["state_dict"])
    assert content.get("arch", "resnet18") == "resnet18"
