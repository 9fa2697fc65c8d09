"""``finetune --dry-run`` says what a run would take, draws its first batch, and leaves nothing else."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from run_command import finetune_arguments

from taf_fast.cli.train import _duration
from taf_fast.data import ClipLoader, read_dataset, scan
from taf_fast.report.sheet import sheet_figure
from taf_fast.run.config import FinetuneConfig
from taf_fast.run.finetune import DryRun, dry_run


@pytest.mark.slow
def test_the_first_batch_is_that_of_the_run(dataset, tmp_path):
    config = FinetuneConfig(
        **dict(data=dataset, out=tmp_path / "run", model="tsm_resnet18", size=32, batch_size=8, lr=0.01),
        **dict(epochs=1, augment="none", clip_grad=None),
    )
    found = dry_run(config)
    assert not config.out.exists()
    train = read_dataset(dataset, "train")
    batch = next(iter(ClipLoader(scan(train), 8, 32, 8, train=True)))
    assert torch.equal(found.clips, batch.clips) and found.ids == tuple(batch.ids)
    assert found.labels == tuple(train.classes[label] for label in batch.labels)
    assert found.steps == 3 and found.memory > 2**27 and found.step_seconds > 0 and found.load_seconds >= 0
    assert 0 < found.loss < 5


def test_the_estimate_is_of_the_slower_part():
    common = dict(clips=torch.zeros(0), labels=(), ids=(), device=torch.device("cpu"), loss=1.0, memory=1)
    assert DryRun(**common, steps=100, step_seconds=0.5, load_seconds=0.2).epoch_seconds == 50
    assert DryRun(**common, steps=100, step_seconds=0.5, load_seconds=0.8).epoch_seconds == 80
    for seconds, text in ((3.4, "3 s"), (119, "119 s"), (150, "2.5 minutes"), (2 * 3600, "2.0 hours")):
        assert _duration(seconds) == text


@pytest.mark.slow
def test_the_command_leaves_the_picture_alone(dataset, tmp_path, monkeypatch, output, error):
    monkeypatch.chdir(tmp_path)
    arguments = finetune_arguments(dataset, "runs/new")
    printed = output(*arguments, "--dry-run")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new.png", "runs"]
    pixels = Image.open("runs/new.png")
    assert pixels.width > 1000 and pixels.height > 4 * 100
    for pattern in (
        "wrote runs/new.png",
        r"loss \d\.\d{3} on 4 clips",
        r"memory: at most \d+\.\d\d GiB of the process",
        r"a step takes \d+\.\d\d s, loading its clips \d+\.\d\d s",
        r"an epoch has 6 steps and takes about \d+ s, validation aside",
    ):
        assert re.search(f"^{pattern}$", printed, re.MULTILINE), printed
    # The folder of a run stays as it is, and a name of a picture is taken as such.
    Path("runs/new").mkdir()
    Path("runs/new/config.yaml").write_text("as it was")
    output(*arguments, "--dry-run", "--out", "runs/new")
    output(*arguments, "--dry-run", "--out", "sheet.png")
    files = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(files) == ["runs/new.png", "runs/new/config.yaml", "sheet.png"]
    assert Path("runs/new/config.yaml").read_text() == "as it was"
    assert "cannot --resume" in error(*arguments, "--dry-run", "--resume")


def test_a_sheet_shows_every_clip_with_its_label(generator):
    clips = torch.randint(0, 256, (3, 2, 8, 8, 3), generator=generator, dtype=torch.uint8)
    figure = sheet_figure(clips, ["Left $x$", "Right", "Up"], ["1", "2", "3"])
    assert [axis.get_title("left") for axis in figure.axes] == ["Left $x$ (1)", "Right (2)", "Up (3)"]
    for axis, clip in zip(figure.axes, clips, strict=True):
        shown = torch.from_numpy(axis.images[0].get_array().data.copy())
        assert torch.equal(shown[:, :8], clip[0]) and torch.equal(shown[:, -8:], clip[1])
    many = sheet_figure(clips[:1].expand(70, -1, -1, -1, -1), ["a"] * 70, ["b"] * 70)
    assert len(many.axes) == 64 and "64 of 70 clips of 2 frames" in " ".join(many.get_suptitle().split())
