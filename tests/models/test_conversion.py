"""Checkpoints in the wild: prefixes, containers, other class orders, damage, and ImageNet weights."""

import collections
import os
import pickle
import re
import sys
import types

import pytest
import torch
from safetensors.torch import save_file

from taf_fast import add_adversarial_bn, models
from taf_fast.models import CheckpointError

FAMILIES = ("tsm", "gst", "gst_large", "tam", "tpn")


def build(name="tsm_resnet18", classes=5, **options):
    """Return a model in which every tensor differs from its initial value."""
    model = models.build(name, classes, 4, **options)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1)
    return model


def assert_equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def save(path, state, **extras):
    torch.save({"state_dict": state, "epoch": 45, **extras}, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_to_every_origin_and_back(tmp_path, seed, family):
    torch.manual_seed(seed)
    name = f"{family}_resnet18"
    for origin in ("official", "mmaction2") if family in ("tsm", "tpn") else ("official",):
        options = {"mixed_shortcut": False} if (family, origin) == ("tpn", "mmaction2") else {}
        model = build(name, **options)
        path = tmp_path / f"{origin}.pth"
        torch.save(models.export(model, origin), path)
        found = models.inspect(path)
        assert (found.model, found.num_classes, found.source.origin) == (name, 5, origin)
        other = models.build(name, 5, 4)
        report = models.load(other, path)
        assert not report.problems and other.options == model.options
        assert_equal(other, model)


@pytest.mark.slow
def test_our_own_files(tmp_path):
    for name in ("tpn_resnet18", "gst_resnet18", "tam_resnet18", "tsm_resnet18"):
        model, other = build(name), models.build(name, 5, 4)
        save_file(model.state_dict(), tmp_path / "w.safetensors")
        assert models.inspect(tmp_path / "w.safetensors").model == name
        models.load(other, tmp_path / "w.safetensors")
        assert_equal(other, model)


def variants(state):
    """Official TSM files with the differences that their writers left in them."""
    bare = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    yield "as saved", state
    yield "without module", bare
    yield "compiled", {f"_orig_mod.{name}": tensor for name, tensor in bare.items()}
    yield "without net", {name.replace(".net.", "."): tensor for name, tensor in state.items()}
    yield "old", {name: tensor for name, tensor in state.items() if "num_batches" not in name}
    yield "dropout 0", {name.replace("new_fc", "base_model.fc"): tensor for name, tensor in state.items()}


@pytest.mark.slow
def test_official_tsm_files_in_all_variants(tmp_path):
    model = build()
    exported = models.export(model, "official")
    assert set(exported) == {"epoch", "arch", "state_dict", "best_prec1"}
    for what, state in variants(exported["state_dict"]):
        other = models.build("tsm_resnet18", 5, 4)
        other.load_state_dict(
            {k: v for k, v in model.state_dict().items() if "num_batches" in k}, strict=False
        )
        assert not models.load(other, save(tmp_path / "w.pth.tar", state)).problems, what
        assert_equal(other, model)


def test_a_bare_state_dict_and_mmaction2_s_leftovers(tmp_path):
    model, other = build(), models.build("tsm_resnet18", 5, 4)
    state = models.export(model, "mmaction2")["state_dict"]
    state["cls_head.new_cls.weight"] = torch.zeros(5, 3)
    torch.save(collections.OrderedDict(state), tmp_path / "w.pth")
    assert not models.load(other, tmp_path / "w.pth").unexpected
    assert_equal(other, model)


RAW = ("Turning", "Holding", "Approaching", "Zipping", "Dropping")
# Positions in RAW of Approaching, Dropping, Holding, Turning, Zipping.
ORDER = [2, 4, 1, 0, 3]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tsm_resnet18", "tpn_resnet18"])
def test_class_order_of_the_labels_file(tmp_path, name):
    model = build(name, **({"mixed_shortcut": False} if "tpn" in name else {}))
    path = tmp_path / "w.pth"
    torch.save(models.export(model, "mmaction2"), path)
    other = models.build(name, 5, 4)
    models.load(other, path, raw_classes=RAW)
    assert torch.equal(other.fc.weight, model.fc.weight[ORDER])
    assert torch.equal(other.fc.bias, model.fc.bias[ORDER])
    if "tpn" in name:
        assert torch.equal(other.auxiliary.fc.weight, model.auxiliary.fc.weight[ORDER])
        assert torch.equal(other.auxiliary.fc.bias, model.auxiliary.fc.bias[ORDER])
    back = models.export(other, "mmaction2", raw_classes=RAW)["state_dict"]
    for key, tensor in models.export(model, "mmaction2")["state_dict"].items():
        assert torch.equal(back[key], tensor), key
    for wrong in (RAW[:4], (*RAW[:4], RAW[0])):
        with pytest.raises(CheckpointError, match="class names .* for a model of 5 classes"):
            models.load(other, path, raw_classes=wrong)


class Touch:
    """A pickle that would create a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_checkpoint_runs_only_when_trusted(tmp_path):
    model, trace = build(), str(tmp_path / "ran")
    path = save(tmp_path / "w.pth", models.export(model, "official")["state_dict"], meta=Touch(trace))
    with pytest.raises(CheckpointError, match="w.pth cannot be read: .*--trust-checkpoint"):
        models.load(model, path)
    assert not os.path.exists(trace)
    models.load(model, path, trust=True)
    assert os.path.exists(trace)


@pytest.mark.parametrize("legacy", [False, True])
def test_classes_that_are_not_installed(tmp_path, monkeypatch, legacy):
    """As in MMAction2's training files, whose message hub and optimiser are objects of mmengine's."""
    module = types.ModuleType("absent_engine")

    class Buffer(dict):
        pass

    class Hub:
        pass

    for kind in (Buffer, Hub):
        kind.__module__, kind.__qualname__ = "absent_engine", kind.__name__
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "absent_engine", module)
    hub, buffer = Hub(), Buffer(lr=[0.1, 0.2])
    hub.history = buffer
    model, other = build(), models.build("tsm_resnet18", 5, 4)
    content = {**models.export(model, "mmaction2"), "message_hub": hub, "optimizer": buffer}
    path = tmp_path / "w.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    monkeypatch.delitem(sys.modules, "absent_engine")
    with pytest.raises(CheckpointError, match="--trust-checkpoint"):
        models.load(other, path)
    models.load(other, path, trust=True)
    assert_equal(other, model)


def test_damaged_files(tmp_path):
    model = build()
    state = model.state_dict()
    save_file(state, tmp_path / "whole.safetensors")
    content = (tmp_path / "whole.safetensors").read_bytes()
    for length in (0, 5, 2000, len(content) - 1):
        (tmp_path / "cut.safetensors").write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="cut.safetensors is (truncated or not a|neither)"):
            models.load(model, tmp_path / "cut.safetensors")
    torch.save(state, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:5000])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "other.pth").write_bytes(pickle.dumps([1, 2]) * 20)
    for name in ("cut", "empty", "other"):
        for trust in (False, True):
            with pytest.raises(
                CheckpointError, match=f"{name}.pth (cannot be|holds no state dict|is neither)"
            ):
                models.load(model, tmp_path / f"{name}.pth", trust=trust)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        models.load(model, tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="absent.pth does not exist"):
        models.load(model, tmp_path / "absent.pth")


def test_wholly_or_not_at_all(tmp_path):
    model = build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = models.export(build(), "official")["state_dict"]
    state["extra"] = state.pop("module.base_model.conv1.weight")
    state["module.base_model.bn1.weight"] = torch.zeros(3)
    path = save(tmp_path / "odd.pth", state)
    message = (
        "3 problems): missing backbone.conv1.weight; unexpected extra; module.base_model.bn1.weight is [3]"
    )
    with pytest.raises(CheckpointError, match=re.escape(message)):
        models.load(model, path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name

    report = models.load(model, path, strict=False)
    assert report.missing == ("backbone.conv1.weight",) and report.unexpected == ("extra",)
    assert len(report.mismatched) == 1 and len(report.loaded) == len(before) - 2
    assert "120 tensors loaded, 1 missing, 1 unexpected, 1 of another shape" in str(report)
    assert torch.equal(model.fc.weight, state["module.new_fc.weight"])
    assert torch.equal(model.backbone.conv1.weight, before["backbone.conv1.weight"])


def test_files_of_something_else(tmp_path):
    official = save(tmp_path / "gst.pth", models.export(build("gst_resnet18"), "official")["state_dict"])
    with pytest.raises(CheckpointError, match="gst.pth is a gst_resnet18 file; the model is a tsm_resnet18"):
        models.load(build(), official)
    with pytest.raises(CheckpointError, match="has 5 classes, expected 7"):
        models.load(build("gst_resnet18", classes=7), official)
    with pytest.raises(CheckpointError, match="is a gst_resnet18 file; the model is a gst_large_resnet18"):
        models.load(build("gst_large_resnet18"), official)
    tsm = save(tmp_path / "tsm.pth", models.export(build(), "official")["state_dict"])
    with pytest.raises(CheckpointError, match="tsm.pth is a tsm_resnet18 file; the model is a tsm_resnet50"):
        models.load(build("tsm_resnet50"), tsm)
    save(tmp_path / "else.pth", {"encoder.weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="holds no known model; its first tensors: encoder.weight"):
        models.load(build(), tmp_path / "else.pth")
    save(tmp_path / "headless.pth", {"backbone.layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3)})
    with pytest.raises(CheckpointError, match="has no fc.weight"):
        models.inspect(tmp_path / "headless.pth")


def test_what_cannot_be_written():
    with pytest.raises(CheckpointError, match="a gst model cannot be written for 'mmaction2'"):
        models.export(build("gst_resnet18"), "mmaction2")
    with pytest.raises(CheckpointError, match="cannot be written for 'tpn'"):
        models.export(build(), "tpn")
    with pytest.raises(CheckpointError, match="of the mmaction2 tpn do not see shifted"):
        models.export(build("tpn_resnet18"), "mmaction2")
    with pytest.raises(CheckpointError, match="of the official tpn see shifted"):
        models.export(build("tpn_resnet18", mixed_shortcut=False), "official")
    with pytest.raises(CheckpointError, match="adversarial batch norms"):
        models.export(add_adversarial_bn(build()), "official")


def image_resnet(model):
    """Return new weights under torchvision's names, in the shapes of a plain ResNet of this depth."""
    plain = models.build("tsm_resnet18" if len(model.backbone.layer1) == 2 else "tsm_resnet50", 1000)
    names = {name.removeprefix("backbone."): value for name, value in plain.state_dict().items()}
    return {name: torch.rand(value.shape) for name, value in names.items() if "num_batches" not in name}


@pytest.mark.parametrize("name", [*(f"{family}_resnet18" for family in FAMILIES), "gst_resnet50"])
def test_imagenet_weights(tmp_path, name):
    family, model = name.rsplit("_", 1)[0], build(name)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    image = image_resnet(model)
    torch.save(image, tmp_path / "resnet.pth")
    report = models.load_imagenet(model, tmp_path / "resnet.pth")
    fresh = {
        "tsm": r"fc\.",
        "gst": r"fc\.|.*\.conv2\.temporal\.",
        "gst_large": r"fc\.|.*\.conv2\.temporal\.",
        "tam": r"fc\.|.*\.temporal\.",
        "tpn": r"fc\.|neck\.|auxiliary\.",
    }[family]
    for name, tensor in model.state_dict().items():
        if "num_batches" in name:
            continue
        assert (name in report.missing) == bool(re.match(fresh, name)), name
        if name in report.missing:
            assert torch.equal(tensor, before[name]), name
        elif name.endswith(".conv2.spatial.weight"):
            # GST's rule: three quarters of the output channels, and half of the input (GST-Large: all).
            kernel = image[name.removeprefix("backbone.").replace(".spatial", "")]
            inputs = kernel.shape[1] // (2 if family == "gst" else 1)
            assert torch.equal(tensor, kernel[: kernel.shape[0] // 4 * 3, :inputs]), name
        else:
            assert torch.equal(tensor, image[name.removeprefix("backbone.")]), name


@pytest.mark.slow
def test_imagenet_errors(tmp_path):
    torch.save(image_resnet(build("tsm_resnet50")), tmp_path / "resnet50.pth")
    with pytest.raises(CheckpointError, match="another depth"):
        models.load_imagenet(build(), tmp_path / "resnet50.pth")
    with pytest.raises(CheckpointError, match="holds an image ResNet, expected a video model"):
        models.inspect(tmp_path / "resnet50.pth")
    with pytest.raises(CheckpointError, match="holds a resnet model, expected tsm"):
        models.load(build(), tmp_path / "resnet50.pth")
    torch.save(models.export(build(), "official"), tmp_path / "tsm.pth")
    with pytest.raises(CheckpointError, match="holds a tsm model, expected an image ResNet"):
        models.load_imagenet(build(), tmp_path / "tsm.pth")
