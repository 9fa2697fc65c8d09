"""Damaged files: the same result as from the whole ones, or one error; never another result."""

import hashlib
import os
import random
import shutil
from pathlib import Path

import pytest
import yaml
from faults.commands import often, result, temporaries
from run_command import finetune_arguments
from sweep.sweep_files import SMALL, START


def flipped(content: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(content)
    damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def near_the_start(content: bytes, draw: random.Random) -> bytes:
    """A flip where headers are."""
    at = min(2000, len(content))
    return flipped(content[:at], draw) + content[at:]


def other_bytes(content: bytes, draw: random.Random) -> bytes:
    at, length = draw.randrange(len(content)), draw.randint(1, 64)
    return content[:at] + draw.randbytes(min(length, len(content) - at)) + content[at + length :]


def truncated(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def without_a_piece(content: bytes, draw: random.Random) -> bytes:
    first, last = sorted(draw.randrange(len(content)) for _ in range(2))
    return content[:first] + content[last + 1 :]


def repeated(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content))
    return content[:at] + content[at : at + draw.randint(1, 1000)] + content[at:]


DAMAGES = (flipped, near_the_start, other_bytes, truncated, without_a_piece, repeated)
damages = pytest.mark.parametrize("damage", often(DAMAGES[:1], DAMAGES), ids=lambda damage: damage.__name__)
seeds = pytest.mark.parametrize("seed", range(often(1, 2)))


def harm(path: Path, damage, draw: random.Random) -> None:
    """Damage a file and keep its times, as a disk that fails does."""
    before, content = path.stat(), path.read_bytes()
    path.write_bytes(damage(content, draw))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def digests(*folders: Path) -> dict[Path, str]:
    """What is to outlast a command that refuses; not the locks and temporary files of killed ones."""
    files = [path for folder in folders for path in folder.glob("[!.]*") if path.suffix != ".lock"]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
@seeds
@damages
@pytest.mark.parametrize(
    "name",
    often(["state.safetensors"], ["state.safetensors", "config.yaml", "metrics.jsonl", "quarantine.json"]),
)
def test_files_of_a_run_that_goes_on(
    fault, commands, dataset, half, whole, options, tmp_path, name, damage, seed
):
    out, draw = shutil.copytree(half, tmp_path / "run"), random.Random(f"{name} {damage.__name__} {seed}")
    harm(out / name, damage, draw)
    before = digests(out)
    with fault(f"damage: {name} of a run that goes on"):
        if commands.run([*finetune_arguments(dataset, out, **options), "--resume"]).held():
            assert result(out) == result(whole)
        else:
            assert {path: digest for path, digest in digests(out).items() if path in before} == before
        assert not temporaries(out)


@pytest.mark.slow
@seeds
@damages
@pytest.mark.parametrize("command", often(["convert"], ["evaluate", "convert", "report", "attention"]))
def test_weights(fault, commands, dataset, whole, tmp_path, command, damage, seed):
    run = shutil.copytree(whole, tmp_path / "run")
    weights, draw = run / "model.safetensors", random.Random(f"{command} {damage.__name__} {seed}")
    out = tmp_path / "out"
    of_model = ["--data", dataset, "--checkpoint", weights, "--device", "cpu", "--out", out]
    arguments = {
        "evaluate": ["evaluate", *of_model],
        "attention": ["attention", *of_model],
        "convert": ["convert", weights, out, "--to", "official"],
        "report": ["report", run, "--out", out],
    }[command]
    harm(weights, damage, draw)
    with fault(f"damage: weights for {command}"):
        held = commands.run(arguments).held()
        # The report reads only what the header says of the classes.
        assert not held or command == "report", "other weights were taken"
        assert held == out.exists() and not temporaries(tmp_path)


@pytest.mark.slow
@seeds
@damages
@pytest.mark.parametrize(
    "name",
    often(
        ["metrics.jsonl"],
        [
            "metrics.jsonl",
            "config.yaml",
            "predictions.csv",
            "result.json",
            "environment.json",
            "quarantine.json",
        ],
    ),
)
def test_files_of_a_run_in_a_report(fault, commands, whole, tmp_path, name, damage, seed):
    run, draw = shutil.copytree(whole, tmp_path / "run"), random.Random(f"{name} {damage.__name__} {seed}")
    harm(run / name, damage, draw)
    with fault(f"damage: {name} in a report"):
        assert commands.run(["report", run, "--out", tmp_path / "out"]).held() == (tmp_path / "out").exists()
        assert not temporaries(tmp_path)


@pytest.mark.slow
@seeds
@damages
@pytest.mark.parametrize("split", often(["labels"], ["labels", "train", "validation"]))
def test_annotations_of_a_run_that_goes_on(
    fault, commands, dataset, half, whole, options, tmp_path, split, damage, seed
):
    """A run knows the clips and labels that it began with."""
    data, out = shutil.copytree(dataset, tmp_path / "data"), shutil.copytree(half, tmp_path / "run")
    before = dataset.readlink()
    draw = random.Random(f"{split} {damage.__name__} {seed}")
    harm(next(data.glob(f"*{split}.json")), damage, draw)
    try:
        dataset.unlink()
        dataset.symlink_to(data)
        with fault("damage: annotations of a run that goes on"):
            if commands.run([*finetune_arguments(dataset, out, **options), "--resume"]).held():
                assert result(out) == result(whole)
            assert not temporaries(out)
    finally:
        dataset.unlink()
        dataset.symlink_to(before)


@pytest.fixture(scope="module")
def cached(commands, dataset, tmp_path_factory):
    """The data set with a manifest, and its cache. Read only."""
    folder = tmp_path_factory.mktemp("cached")
    data = shutil.copytree(dataset, folder / "data")
    commands.succeed(["scan", "--data", data, "--workers", 1, "--cache", folder / "cache"])
    return folder


@pytest.mark.slow
@seeds
@damages
@pytest.mark.parametrize("name", ["data/taf_fast_manifest.jsonl", "cache/taf_fast_cache.jsonl"])
def test_indices(fault, commands, whole, cached, tmp_path, name, damage, seed):
    folder, draw = tmp_path / "copy", random.Random(f"{name} {damage.__name__} {seed}")
    shutil.copytree(cached, folder)
    data, out = (folder / name).parent, tmp_path / "scores.json"
    arguments = ["evaluate", "--data", data, "--checkpoint", whole / "model.safetensors", "--device", "cpu"]
    commands.succeed([*arguments, "--out", tmp_path / "expected.json"])
    harm(folder / name, damage, draw)
    with fault(f"damage: {Path(name).name}"):
        if commands.run([*arguments, "--out", out]).held() and '"quarantined": {}' in out.read_text():
            assert out.read_bytes() == (tmp_path / "expected.json").read_bytes()
        assert not temporaries(tmp_path)


@pytest.mark.slow
@seeds
@damages
def test_pictures_of_a_cache(fault, commands, whole, cached, tmp_path, damage, seed):
    """A clip that decodes to other pictures is found by a verifying scan; nothing stops at it."""
    cache, draw = shutil.copytree(cached / "cache", tmp_path / "cache"), random.Random(f"{damage} {seed}")
    pack = cache / "frames-00000.jpegs"
    content = pack.read_bytes()
    harm(pack, damage, draw)
    changed = pack.read_bytes() != content
    with fault("damage: pictures of a cache"):
        evaluate = ["evaluate", "--data", cache, "--checkpoint", whole / "model.safetensors"]
        commands.run([*evaluate, "--device", "cpu"]).held()
        verified = commands.run(["scan", "--data", cache, "--verify", "--workers", 1])
        assert (verified.status != 0) == changed and "Traceback" not in verified.errors, verified


@pytest.mark.slow
@seeds
@damages
@pytest.mark.parametrize("kind", often(["webm"], ["webm", "mp4", "jpg"]))
def test_clips(fault, commands, tmp_path, tmp_path_factory, kind, damage, seed):
    """A scan gives every clip frames or a reason."""
    data, draw = tmp_path / "data", random.Random(f"{kind} {damage.__name__} {seed}")
    format = {"webm": "ssv2", "mp4": "diving48", "jpg": "ssv1"}[kind]
    commands.succeed(["synth", data, "--format", format, "--train-per-class", 1, "--val-per-class", 1])
    clips = sorted(data.rglob(f"*.{kind}"))
    for clip in draw.sample(clips, 4):
        harm(clip, damage, draw)
    with fault(f"damage: clips ({kind})"):
        commands.run(["scan", "--data", data, "--workers", 1]).held()


@pytest.mark.slow
@seeds
@damages
def test_plans_of_sweeps(fault, commands, dataset, tmp_path, damage, seed):
    """With no data, so that a plan that is still one ends there."""
    plan, draw = tmp_path / "plan.yaml", random.Random(f"{damage} {seed}")
    plan.write_text(yaml.safe_dump(SMALL | {"start": START}, sort_keys=False))
    harm(plan, damage, draw)
    with fault("damage: plans of sweeps"):
        (tmp_path / "nothing").mkdir()
        arguments = ["sweep", plan, "--data", tmp_path / "nothing", "--out", tmp_path / "sweep"]
        assert not commands.run([*arguments, "--device", "cpu"]).held()
        assert not list(tmp_path.glob("sweep/*"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_endless_clips(fault, commands, dataset, tmp_path, workers):
    """Pipes, links to a device that never ends, circles and folders in place of clips: a reason for each."""
    data = shutil.copytree(dataset, tmp_path / "data")
    clips = sorted(data.rglob("*.webm"))
    for clip in clips[:4]:
        clip.unlink()
    os.mkfifo(clips[0])
    clips[1].symlink_to("/dev/zero")
    clips[2].symlink_to(clips[2])
    os.mkfifo(tmp_path / "pipe")
    clips[3].symlink_to(tmp_path / "pipe")
    for quick in ([], ["--quick"]):
        with fault("pipes and endless devices as clips"):
            printed = commands.succeed(["scan", "--data", data, "--workers", workers, *quick])
            assert "4 of 32 clips have defects" in printed
            for clip, reason in zip(clips, ("a pipe", "a device", "a circle", "a pipe"), strict=False):
                (line,) = (line for line in printed.splitlines() if f" {clip.stem}: " in line)
                assert reason in line
