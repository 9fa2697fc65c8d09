"""What the commands say before and next to their work: versions, missing files, other models, doubts."""

import re
import shutil

import pytest
import torch
from run_command import finetune_arguments

import taf_fast
import taf_fast.run.finetune
from taf_fast import models
from taf_fast.errors import CheckpointError, DataError
from taf_fast.run.checkpoint import weights_file
from taf_fast.run.config import FinetuneConfig
from taf_fast.run.model import build_model
from taf_fast.run.trained_input import say_if_input_differs


def test_version_and_short_help(output):
    assert output("--version") == f"taf-fast {taf_fast.__version__}\n"
    for arguments in ([], ["finetune"], ["scan"]):
        assert output(*arguments, "-h") == output(*arguments, "--help")
    assert "Temporal Adversarial Fine-tuning of video models." in output("-h")


@pytest.mark.parametrize(
    "arguments",
    [
        ("finetune", "--model", "tsm_resnet18", "--out", "out"),
        ("finetune", "--recipe", "missing.yaml"),
        ("sweep", "table4", "--out", "out"),
        ("evaluate",),
        ("robustness",),
        ("attention", "--out", "out.png"),
        ("perturbations", "--out", "out.png"),
        ("scan",),
        ("classes", "a", "b", "--out", "out.png"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_missing_data_are_said_first(tmp_path, monkeypatch, error, arguments):
    """Before the checkpoint, the recipe and everything else."""
    monkeypatch.chdir(tmp_path)
    missing = tmp_path / "missing"
    own = () if arguments[0] in ("scan", "classes") else ("--checkpoint", missing)
    message = error(*arguments, *own, "--data", missing)
    assert message == f"error: {missing} does not exist, expected the folder of a data set\n"
    (tmp_path / "file").touch()
    assert "file is no folder, expected the folder of a data set" in error(*arguments, *own, "--data", "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_missing_data_in_python(tmp_path):
    with pytest.raises(DataError, match="missing does not exist, expected the folder of a data set"):
        taf_fast.run.finetune.finetune(FinetuneConfig(data=tmp_path / "missing", out=tmp_path / "out"))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_folder_of_a_run_is_its_weights(dataset, runs, tmp_path, output, error):
    folder = runs[0]
    assert weights_file(folder) == folder / "model.safetensors" == weights_file(folder / "model.safetensors")
    evaluate = ("evaluate", "--data", dataset, "--device", "cpu", "--checkpoint")
    assert output(*evaluate, folder) == output(*evaluate, folder / "model.safetensors")
    clip = next(dataset.rglob("*.webm"))
    assert taf_fast.predict(folder, clip) == taf_fast.predict(folder / "model.safetensors", clip)
    output("convert", folder, tmp_path / "w.pth", "--to", "official")
    # Weights without a run, and a run without weights.
    unfinished = tmp_path / "unfinished"
    shutil.copytree(folder, unfinished, ignore=shutil.ignore_patterns("model.safetensors", "[m-r]*"))
    message = (
        f"checkpoint {unfinished} is a folder without model.safetensors, expected a file or the folder of a "
        "finished run; it holds config.yaml, environment.json, "
    )
    for arguments in (
        (*evaluate, unfinished),
        ("convert", unfinished, tmp_path / "w", "--to", "official"),
        ("predict", clip, "--checkpoint", unfinished),
        finetune_arguments(dataset, tmp_path / "out", checkpoint=unfinished),
        ("sweep", "table4", "--data", dataset, "--out", tmp_path / "out", "--checkpoint", unfinished),
    ):
        assert message in error(*arguments)
    with pytest.raises(CheckpointError, match="it holds nothing$"):
        (tmp_path / "empty").mkdir()
        weights_file(tmp_path / "empty")


def test_weights_of_another_model_are_named(dataset, tmp_path):
    """Those of other projects too, in one line, not by the tensors that do not fit."""
    from taf_fast.data import read_dataset

    path = tmp_path / "tsm.pth"
    torch.save(models.export(models.build("tsm_resnet18", 8), "official"), path)
    for name in ("tsm_resnet50", "gst_resnet18", "tpn_resnet50"):
        with pytest.raises(CheckpointError) as refused:
            build_model(read_dataset(dataset, "train"), name, 8, checkpoint=path)
        assert str(refused.value) == f"checkpoint {path} is a tsm_resnet18 file; the model is a {name}"


def test_training_from_scratch_at_the_rate_of_fine_tuning_is_doubted():
    given = dict(data="d", out="o")
    assert FinetuneConfig(**given).doubt().startswith("warning: lr 0.0001 is for fine-tuning")
    assert FinetuneConfig(**given, imagenet="weights.pth").doubt()
    assert FinetuneConfig(**given, lr=0.01).doubt() is None
    assert FinetuneConfig(**given, checkpoint="weights.pth").doubt() is None


def test_amounts_of_pixels(dataset, tmp_path, error):
    for option in ("--epsilon", "--step-size"):
        message = error("finetune", "--data", dataset, "--out", tmp_path / "out", option, 64)
        name = option[2:].replace("-", "_")
        assert message == (
            f"error: {name} must be between 0 and 1, which is black to white: 64 of 255 levels are 64/255, "
            "got 64.0\n"
        )


OWN = {"num_segments": 8, "size": 32}


@pytest.mark.parametrize(
    ("name", "known", "given", "notes"),
    [
        ("model.safetensors", OWN, (8, 32), []),
        ("model.safetensors", OWN, (4, 32), ["on 8 frames per clip; here they are 4"]),
        ("model.safetensors", OWN, (8, 64), ["on frames of 32 pixels; here they have 64"]),
        ("TSM_something_RGB_resnet50_shift8_blockres_avg_segment8_e45.pth", {}, (8, 224), []),
        ("TSM_something_RGB_resnet50_shift8_blockres_avg_segment16_e45.pth", {}, (8, 224), ["16 frames"]),
        ("tsm_imagenet-pretrained-r50_8xb16-1x1x8-50e_sthv1-rgb.pth", {}, (16, 128), ["8 frames", "of 224"]),
        ("tsm_r50_1x1x16_50e_sthv2_rgb.pth", {}, (8, 224), ["16 frames"]),
        ("sthv1-TAM-b3-sum-resnet-50-f8-cosine.pth", {}, (8, 224), []),
        ("weights.pth", {}, (8, 224), ["does not say how many frames"]),
    ],
)
def test_other_clips_than_in_training_are_noted(tmp_path, capsys, name, known, given, notes):
    say_if_input_differs(tmp_path / name, known, *given)
    lines = capsys.readouterr().out.splitlines()
    lines = [line for line in lines if not line.startswith("TAF_FAST_SEED")]
    assert len(lines) == len(notes)
    for line, note in zip(lines, notes, strict=True):
        assert line.startswith(f"note: {tmp_path / name} ") and note in line


@pytest.mark.slow
def test_measures_note_other_clips(dataset, runs, output):
    evaluate = ("evaluate", "--data", dataset, "--device", "cpu", "--checkpoint", runs[0])
    assert "note:" not in output(*evaluate)
    printed = output(*evaluate, "--size", 32, "--num-segments", 4)
    assert re.findall("note: .*trained on (.*?);", printed) == ["8 frames per clip", "frames of 64 pixels"]
    clip = next(dataset.rglob("*.webm"))
    assert "frames of 64 pixels" in output("predict", clip, "--checkpoint", runs[0], "--size", 32)
