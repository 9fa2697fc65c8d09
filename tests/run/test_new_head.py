"""A new classifier on a trained trunk: of which files, from which numbers, and in a run."""

import os
import shutil
import signal

import pytest
import torch
from run_command import finetune_arguments
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook

from taf_fast import add_adversarial_bn, models
from taf_fast.data import VideoDataset, read_dataset
from taf_fast.errors import ClassesError
from taf_fast.models.dual_batch_norm import named_duals
from taf_fast.run.checkpoint import ModelInfo, read_info, save_weights
from taf_fast.run.config import FinetuneConfig
from taf_fast.run.finetune import finetune
from taf_fast.run.model import build_model

CLASSES = ("a", "b", "c")
SOURCES = [
    *(("tsm_resnet18", origin) for origin in ("taf_fast", "official", "mmaction2")),
    *(("gst_resnet18", origin) for origin in ("taf_fast", "official")),
    ("gst_large_resnet18", "official"),
    *(("tam_resnet18", origin) for origin in ("taf_fast", "official")),
    *(("tpn_resnet18", origin) for origin in ("taf_fast", "official", "mmaction2")),
]


def write_trained(path, name, origin, classes):
    """Weights and batch statistics that no new model has; -> the model."""
    model = models.build(
        name, len(classes), 4, **({"mixed_shortcut": False} if origin == "mmaction2" else {})
    )
    for buffer in model.buffers():
        if buffer.is_floating_point() and buffer is not model.mean and buffer is not model.std:
            buffer.uniform_(1, 2)
    if origin == "taf_fast":
        save_weights(path, model, ModelInfo(name, classes, 4, 32, model.options))
    else:
        torch.save(models.export(model, origin), path)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name, origin", SOURCES)
@pytest.mark.parametrize("data", ["ssv1"])
def test_the_trunk_is_the_checkpoint_s_and_the_head_is_drawn(tmp_path, seed, name, origin, data):
    """Also where MMAction2's order of the classes is open: none of them is read."""
    path = tmp_path / "trained"
    trained = write_trained(path, name, origin, tuple("ABCDE")).state_dict()
    dataset = VideoDataset(tmp_path, "train", CLASSES, (), data)
    torch.manual_seed(seed)
    model = build_model(dataset, name, 4, checkpoint=path, new_head=True)
    torch.manual_seed(seed)
    drawn = models.build(name, 3, 4).state_dict()
    heads = {f"{head}.{kind}" for head in ("fc", "auxiliary.fc") for kind in ("weight", "bias")} & set(drawn)
    assert len(heads) == (4 if "tpn" in name else 2)
    for key, value in model.state_dict().items():
        if "num_batches" not in key:
            assert torch.equal(value, drawn[key] if key in heads else trained[key]), key
    # The twins start as the norms of the checkpoint.
    for key, norm in named_duals(add_adversarial_bn(model)):
        assert torch.equal(norm.adversarial.running_var, trained[f"{key}.running_var"])


@pytest.mark.parametrize("origin", ["taf_fast", "official"])
def test_all_but_the_head_must_fit(tmp_path, origin):
    path = tmp_path / "trained"
    write_trained(path, "tsm_resnet18", origin, CLASSES)
    dataset = VideoDataset(tmp_path, "train", CLASSES, (), "ssv2")
    for name in ("tsm_resnet50", "tam_resnet18"):
        with pytest.raises(models.CheckpointError, match=f"is a tsm_resnet18 file; the .* {name}"):
            build_model(dataset, name, 4, checkpoint=path, new_head=True)


def test_errors_name_the_option(dataset, tmp_path, error):
    """In finetune, which has it, and not in evaluate."""
    classes = read_dataset(dataset, "train").classes
    official, fewer, renamed, ordered = (
        tmp_path / name for name in ("official", "fewer", "renamed", "ordered")
    )
    write_trained(official, "tsm_resnet18", "official", CLASSES)
    write_trained(fewer, "tsm_resnet18", "taf_fast", CLASSES)
    write_trained(renamed, "tsm_resnet18", "taf_fast", (*classes[:-1], "x"))
    write_trained(ordered, "tsm_resnet18", "taf_fast", classes[::-1])
    option = "; --new-head trains a new classifier for the data set\n"
    for path, message in (
        (official, "official has 3 classes, expected 8"),
        (fewer, "fewer has 3 classes, the data set has 8"),
        (renamed, f"renamed has class 7 'x' where the data set has {classes[-1]!r}"),
        (ordered, f"ordered has class 0 {classes[-1]!r} where the data set has {classes[0]!r}"),
    ):
        arguments = finetune_arguments(dataset, tmp_path / "out", checkpoint=path)
        assert error(*arguments).endswith(message + option)
        assert not (tmp_path / "out").exists()
        found = error("evaluate", "--data", dataset, "--checkpoint", path, "--num-segments", 4)
        assert found.endswith(message + "\n")
    with pytest.raises(ClassesError):
        finetune(FinetuneConfig(data=dataset, out=tmp_path / "out", model="tsm_resnet18", checkpoint=fewer))


@pytest.mark.slow
def test_a_run(dataset, tmp_path, output):
    """It has the classes of the data set, and resumes bit for bit."""
    trained = tmp_path / "trained.safetensors"
    before = write_trained(trained, "tpn_resnet18", "taf_fast", CLASSES).state_dict()
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    options = dict(model="tpn_resnet18", checkpoint=trained, epochs=1, batch_size=12, lr=1e-4, size=64)
    flags = ["--new-head", "--new-head-lr-factor", "10", "--augment", "none"]
    output(*finetune_arguments(dataset, whole, **options), *flags)
    info = read_info(whole / "model.safetensors")
    assert info.classes == read_dataset(dataset, "train").classes
    weights = load_file(whole / "model.safetensors")
    torch.manual_seed(0)
    drawn = models.build("tpn_resnet18", 8, 4).state_dict()
    for key in ("fc.weight", "auxiliary.fc.weight", "backbone.conv1.weight"):
        start = before[key] if "backbone" in key else drawn[key]
        assert 0 < (weights[key] - start).abs().max() < 0.02

    hook = register_optimizer_step_post_hook(lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        assert "stopped at step 1" in output(*finetune_arguments(dataset, stopped, **options), *flags)
    finally:
        hook.remove()
    output(*finetune_arguments(dataset, stopped, **options), *flags, "--resume")
    for name in ("model.safetensors", "state.safetensors"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()
    shutil.rmtree(stopped)
