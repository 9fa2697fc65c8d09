"""taf-fast export and taf_fast.export: files that run without taf_fast give the model's logits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_command import error_of, output_of
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import taf_fast
from taf_fast import models, ops
from taf_fast.errors import CheckpointError, MissingDependency, RunError
from taf_fast.models import resnet
from taf_fast.run import export as module
from taf_fast.run.checkpoint import ModelInfo, save_weights

onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")


@pytest.fixture
def shallow(monkeypatch):
    """One block in each stage: every kind of layer there is, traced in half the time."""
    monkeypatch.setitem(resnet._LAYERS, 18, (resnet.BasicBlock, (1, 1, 1, 1)))


def trained(name, classes=3, frames=4, **options):
    """A model whose layers all matter: random statistics, and logits that differ from clip to clip."""
    model = models.build(name, classes, frames, **options).eval()
    for layer in model.modules():
        if isinstance(layer, _BatchNorm):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    nn.init.normal_(model.fc.weight, 0, 0.1)
    nn.init.normal_(model.fc.bias)
    return model


def run_onnx(path, clips):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return torch.from_numpy(session.run(["logits"], {given.name: clips.numpy()})[0])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["tsm", "gst", "gst_large", "tam", "tpn"])
def test_every_family_in_onnx_runtime(family, shallow, tmp_path, capsys, monkeypatch, generator):
    """By the command, from a checkpoint."""
    name, classes = f"{family}_resnet18", ("a", "b", "[c]")
    model = trained(name)
    checkpoint, out = tmp_path / "model.safetensors", tmp_path / "model.onnx"
    save_weights(checkpoint, model, ModelInfo(name, classes, 4, 40, model.options))
    printed = output_of(capsys, monkeypatch, "export", checkpoint, out, "--to", "onnx")
    assert "in ONNX Runtime differ from the model's by at most" in printed
    assert "clips: float32 [batch,4,3,height,width]" in printed
    content = onnx.load(out)
    assert {node.domain for node in content.graph.node} == {""}
    assert str(Path(taf_fast.__file__).parent).encode() not in out.read_bytes()
    about = {entry.key: entry.value for entry in content.metadata_props}
    assert json.loads(about["classes"]) == list(classes) and about["model"] == name
    assert (about["num_segments"], about["size"]) == ("4", "40")
    assert json.loads(about["std"]) == [0.229, 0.224, 0.225]
    for shape in ((1, 4, 3, 40, 40), (5, 4, 3, 64, 49)):
        clips = torch.randn(shape, generator=generator)
        with torch.no_grad():
            expected = model(clips)
        assert expected.std() > 0.01
        torch.testing.assert_close(run_onnx(out, clips), expected, rtol=0, atol=1e-4)


PROGRAM = """
import json, sys
sys.modules["taf_fast"] = sys.modules["triton"] = None
import torch
about = {"taf_fast.json": ""}
program = torch.export.load(sys.argv[1], extra_files=about)
names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
clips = torch.load(sys.argv[2])
torch.save(program.module()(clips), sys.argv[3])
print(json.dumps([sorted(names), json.loads(about["taf_fast.json"])]))
"""


@pytest.mark.slow
def test_a_program_runs_without_taf_fast(shallow, tmp_path, generator):
    model = trained("tpn_resnet18").train()
    done = taf_fast.export(model, tmp_path / "m.pt2", "torch", size=40)
    assert model.training and model.auxiliary is not None
    assert not [name for name in torch.export.load(done.path).state_dict if "auxiliary" in name]
    assert str(Path(taf_fast.__file__).parent).encode() not in done.path.read_bytes()
    clips = torch.randn(3, 4, 3, 64, 49, generator=generator)
    torch.save(clips, tmp_path / "clips")
    paths = [str(tmp_path / name) for name in ("m.pt2", "clips", "logits")]
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, *paths], cwd=tmp_path, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    names, about = json.loads(ran.stdout)
    assert not any("taf_fast" in name for name in names) and any("conv2d" in name for name in names)
    assert about == done.metadata and about["mean"] == [0.485, 0.456, 0.406]
    with torch.no_grad():
        torch.testing.assert_close(torch.load(paths[2]), model.eval()(clips), rtol=0, atol=1e-5)


@pytest.mark.parametrize("frames, channels, fold_div", [(4, 17, 8), (1, 16, 8), (3, 3, 8), (2, 8, 2)])
def test_the_shift_is_recorded_as_plain_operators(frames, channels, fold_div, generator):
    class Shift(nn.Module):
        def forward(self, x):
            return ops.temporal_shift(x, frames, fold_div)

    x = torch.randn(3 * frames, channels, 2, 5, generator=generator)
    program = torch.export.export(Shift(), (x,))
    assert not any("taf_fast" in str(node.target) for node in program.graph.nodes)
    assert torch.equal(program.module()(x), ops.temporal_shift(x, frames, fold_div))


@pytest.mark.slow
def test_an_official_checkpoint_at_a_size_below_33(shallow, tmp_path, capsys, monkeypatch, generator):
    theirs = trained("tam_resnet18", frames=5)
    torch.save(models.export(theirs, "official"), tmp_path / "tam.pth")
    out = tmp_path / "theirs.pt2"
    given = ["--to", "torch", "--num-segments", 5, "--size", 32]
    printed = output_of(capsys, monkeypatch, "export", tmp_path / "tam.pth", out, *given)
    assert "[batch,5,3,32,32]" in printed
    clips = torch.randn(7, 5, 3, 32, 32, generator=generator)
    with torch.no_grad():
        found = torch.export.load(out).module()(clips)
        torch.testing.assert_close(found, theirs(clips), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_an_adapted_model_of_one_size(tmp_path, generator):
    class OneSize(nn.Module):
        """A linear layer over all pixels takes frames of one size."""

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv3d(3, 4, 3, padding=1)
            self.fc = nn.Linear(4 * 36 * 36, 3)

        def forward(self, clips):
            return self.fc(self.conv(clips).relu().mean(2).flatten(1))

    adapted = taf_fast.adapt(
        OneSize(), "conv", num_segments=2, layout="[B,C,T,h,w]", call=lambda net, x: net(x.transpose(1, 2))
    )
    done = taf_fast.export(adapted, tmp_path / "m.pt2", "torch", size=36)
    assert not done.metadata["dynamic_size"] and "[batch,2,3,36,36]" in done.metadata["input"]
    clips = torch.randn(5, 2, 3, 36, 36, generator=generator)
    with torch.no_grad():
        expected = adapted.eval()(clips)
    torch.testing.assert_close(torch.export.load(done.path).module()(clips), expected)


class Tiny(nn.Module):
    num_segments = 2

    def forward(self, clips):
        return clips.mean((1, 3, 4))


def test_a_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    class Other(Tiny):
        def forward(self, clips):
            return super().forward(clips) + 1e-3 * torch.compiler.is_exporting()

    out = tmp_path / "m.pt2"
    out.write_text("mine")
    with pytest.raises(RunError, match=r"differ from the model's by 1.0e-03, expected at most 1.0e-04"):
        taf_fast.export(Other(), out, "torch", size=40)
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt2"] and out.read_text() == "mine"


def test_refused(tmp_path, monkeypatch, capsys):
    out = tmp_path / "m.onnx"

    def refused(error, message, model=None, to="torch", path=out, **options):
        with pytest.raises(error, match=message):
            taf_fast.export(Tiny() if model is None else model, path, to, **options)
        assert not list(tmp_path.iterdir())

    class Peeks(Tiny):
        def forward(self, clips):
            return super().forward(clips) * (1 if clips.sum() > 0 else 2)

    refused(RunError, "'tflite', expected one of onnx, torch", to="tflite")
    refused(RunError, "Peeks cannot be exported", Peeks(), size=40)
    refused(RunError, "size", size=0)
    refused(RunError, "num_segments", num_segments=0)
    refused(
        CheckpointError, "strip_adversarial_bn", taf_fast.add_adversarial_bn(models.build("tsm_resnet18", 2))
    )
    refused(CheckpointError, "nowhere", tmp_path / "nowhere")
    with pytest.raises(OSError, match="it is a folder"):
        taf_fast.export(Tiny(), tmp_path, "torch")
    (tmp_path / "here").write_text("weights")
    (tmp_path / "link").symlink_to(tmp_path / "here")
    for command in (["export", "--to", "torch"], ["convert", "--to", "official"]):
        message = error_of(capsys, monkeypatch, *command, tmp_path / "here", tmp_path / "link")
        assert "it is the file that is read" in message and (tmp_path / "here").read_text() == "weights"
    for name in ("here", "link"):
        (tmp_path / name).unlink()
    for package in ("onnx", "onnxscript"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, package, None)
            refused(MissingDependency, rf"needs {package}: pip install taf_fast\[onnx\]", to="onnx")
    assert "'mmaction2', expected" in error_of(
        capsys, monkeypatch, "export", tmp_path / "nowhere", out, "--to", "mmaction2"
    )


def test_without_onnxruntime_the_file_is_not_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "onnxruntime" else True)
    done = taf_fast.export(Tiny(), tmp_path / "m.onnx", "onnx", size=40)
    assert done.difference is None and "not checked, as onnxruntime is not installed" in str(done)
    assert done.path.exists()
