"""The command `taf-fast scan`: killed and resumed, verified, and used by the other commands."""

import json
import os
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import av
import pytest
import yaml
from run_command import command, finetune_arguments, taf_fast

from taf_fast.data import read_dataset
from taf_fast.data.scanning.manifest_file import NAME, ManifestFile


@pytest.fixture
def data(dataset, tmp_path) -> Path:
    """A copy: 24 training and 8 validation videos."""
    return shutil.copytree(dataset, tmp_path / "data")


def paths(data: Path) -> list[Path]:
    return [sample.path for split in ("train", "validation") for sample in read_dataset(data, split).samples]


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()[1:]]


def snapshot(folder: Path) -> dict:
    """Everything in a folder, with the times at which it was changed."""
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in [folder, *folder.rglob("*")]}


def flip_four_bytes(path: Path) -> None:
    data, before = bytearray(path.read_bytes()), path.stat()
    at = len(data) // 2
    data[at : at + 4] = bytes(byte ^ 255 for byte in data[at : at + 4])
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def descendants(process: subprocess.Popen) -> list[int]:
    """Processes that it started, and those that they did."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [process.pid]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


@pytest.fixture
def stuck_scan(data):
    """Starts a scan and returns it in mid-run: one clip is so long that it is still being read when
    ``finished`` others are done. ``shorten`` mends that clip."""
    started, endless = [], paths(data)[12]
    content = endless.read_bytes()

    def start(workers: int, finished: int) -> subprocess.Popen:
        endless.write_bytes(b"")
        os.truncate(endless, 2**43)
        arguments = command("scan", "--data", data, "--workers", workers)
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, start_new_session=True)
        started.append(process)
        deadline = time.monotonic() + 120
        while not (data / NAME).exists() or (data / NAME).read_bytes().count(b"\n") < 1 + finished:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        return process

    start.shorten = lambda: endless.write_bytes(content)
    yield start
    for process in started:
        process.kill()
        process.wait()


def assert_ended(pids: list[int]) -> None:
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


# With two processes, each takes eight clips at once.
@pytest.mark.slow
@pytest.mark.parametrize(("workers", "finished"), [(1, 12), (2, 24)])
def test_killed_and_resumed(data, tmp_path, stuck_scan, workers, finished, output, probed):
    process = stuck_scan(workers, finished)
    children = descendants(process)
    assert bool(children) == (workers > 1)
    for pid in (process.pid, *children):  # semaphores, which would outlast a kill of all
        assert "/dev/shm" not in Path(f"/proc/{pid}/maps").read_text()
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert_ended(children)
    done = {row["path"] for row in lines(data / NAME)}
    assert len(done) == finished
    stuck_scan.shorten()
    assert f"32 clips, {finished} of them unchanged" in output("scan", "--data", data, "--workers", 1)
    assert sorted(probed) == sorted(
        path.name for path in paths(data) if str(path.relative_to(data)) not in done
    )
    # As if it had never been killed.
    output("scan", "--data", data, "--manifest", tmp_path / "other", "--workers", 1)
    assert (data / NAME).read_bytes() == (tmp_path / "other").read_bytes()
    assert not list(data.glob(".*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "finished"), [(1, 12), (2, 24)])
def test_ctrl_c_leaves_a_file_to_go_on_from(data, stuck_scan, workers, finished, output):
    process = stuck_scan(workers, finished)
    children = descendants(process)
    os.killpg(process.pid, signal.SIGINT)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and "stopped; the same command goes on from here" in printed
    assert_ended(children)
    stuck_scan.shorten()
    assert f"32 clips, {finished} of them unchanged" in output("scan", "--data", data, "--workers", 1)


@pytest.mark.slow
def test_killed_at_any_moment(data, tmp_path, output):
    """A killed scan can be continued and ends with the file of an uninterrupted one."""
    file = data / NAME
    output("scan", "--data", data, "--manifest", tmp_path / "whole", "--workers", 1)
    for seconds in (0.0, 0.01, 0.03):
        before = file.stat().st_size if file.exists() else 0
        process = subprocess.Popen(command("scan", "--data", data, "--workers", 1), stdout=subprocess.DEVNULL)
        while process.poll() is None and (not file.exists() or file.stat().st_size == before):
            time.sleep(0.001)
        time.sleep(seconds)
        process.kill()
        process.wait()
    output("scan", "--data", data, "--workers", 1)
    assert file.read_bytes() == (tmp_path / "whole").read_bytes()


def test_says_what_is_in_the_data(data, output):
    broken = paths(data)[:25]
    for path in broken:
        path.write_bytes(b"")
    printed = output("scan", "--data", data, "--workers", 1)
    left = sum(row["frames"] for row in lines(data / NAME) if "defect" not in row)
    row = next(line for line in printed.splitlines() if "48 x 36" in line)
    assert row.replace("|", " ").split()[:-1] == ["vp9", "48", "x", "36", "7", str(left)]
    assert "25 of 32 clips have defects" in printed and "and 5 more, which the manifest has" in printed
    assert printed.count(": empty file") == 20 and f"  {broken[19].stem}: empty file" in printed
    assert [row["defect"] for row in lines(data / NAME)[:25]] == ["empty file"] * 25
    assert "32/32" in printed and "clips/s, 25 defects" in printed


def test_no_good_clip_is_an_error(data, error):
    for path in paths(data):
        path.unlink()
    assert "all 32 clips have defects" in error("scan", "--data", data, "--workers", 1)
    assert len(lines(data / NAME)) == 32


def test_a_second_scan_at_once_is_refused(data, output, error):
    with ManifestFile(data / NAME):
        assert f"{NAME} is being written by another" in error("scan", "--data", data, "--workers", 1)
    output("scan", "--data", data, "--workers", 1)


@pytest.mark.slow
def test_verify(data, error, output, probed):
    verify = ("scan", "--data", data, "--verify", "--workers", 1)
    assert f"no manifest {data / NAME}" in error(*verify)
    output("scan", "--data", data, "--workers", 1)
    assert "0 of 32 clips differ" in output(*verify)
    rotten, changed, missing = paths(data)[3:6]
    flip_four_bytes(rotten)
    del probed[:]
    assert "32 of them unchanged" in output("scan", "--data", data, "--workers", 1)
    assert not probed
    os.utime(changed)
    missing.unlink()
    before = snapshot(data)
    done = taf_fast(*verify[:-1], 2)
    assert done.returncode == 1 and not done.stderr
    assert f"{rotten.stem}: has other bytes than at the scan" in done.stdout
    assert f"{changed.stem}: changed since the scan" in done.stdout
    assert f"{missing.stem}: missing file" in done.stdout
    assert "3 of 32 clips differ" in done.stdout
    assert snapshot(data) == before


def test_verify_needs_a_manifest_of_all_clips(data, error, output):
    output("scan", "--data", data, "--workers", 1)
    first = (data / NAME).read_bytes().splitlines(keepends=True)
    (data / NAME).write_bytes(b"".join(first[:21]))
    message = error("scan", "--data", data, "--verify", "--workers", 1)
    assert "lacks 12 of 32 clips" in message and "run taf-fast scan to its end" in message


@pytest.mark.slow
def test_the_other_commands_use_it_and_write_nothing_into_the_data(data, tmp_path, output, error, probed):
    """The run is the same with and without a manifest; data on a read-only place have theirs elsewhere."""
    elsewhere = tmp_path / "manifest"
    arguments = partial(finetune_arguments, data, epochs=1)
    for path in sorted(data.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    data.chmod(0o555)
    before = snapshot(data)
    output(*arguments(tmp_path / "without"))
    assert sorted(probed) == sorted(path.name for path in paths(data))
    output("scan", "--data", data, "--manifest", elsewhere, "--workers", 1)

    del probed[:]
    written = elsewhere.read_bytes()
    output(*arguments(tmp_path / "with", manifest=elsewhere))
    weights = tmp_path / "with" / "model.safetensors"
    assert weights.read_bytes() == (tmp_path / "without" / "model.safetensors").read_bytes()
    assert yaml.safe_load((tmp_path / "with" / "config.yaml").read_text())["manifest"] == str(elsewhere)
    output("evaluate", "--data", data, "--checkpoint", weights, "--manifest", elsewhere, "--device", "cpu")
    assert not probed and snapshot(data) == before and elsewhere.read_bytes() == written
    # It changes no result: a run can be resumed without it.
    output(*arguments(tmp_path / "with"), "--resume")
    assert len(probed) == 32

    data.chmod(0o755)
    shutil.copy(elsewhere, data / NAME)
    before = snapshot(data)
    del probed[:]
    output(*arguments(tmp_path / "default"))
    output("evaluate", "--data", data, "--checkpoint", weights, "--device", "cpu")
    output("attention", "--data", data, "--checkpoint", weights, "--out", tmp_path / "attention.png")
    assert not probed and snapshot(data) == before
    assert "no manifest" in error(*arguments(tmp_path / "none"), "--manifest", tmp_path / "nothing")
    (data / NAME).write_text("junk")
    assert f"{NAME} is not a manifest" in error(*arguments(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def damage_a_frame(path: Path) -> None:
    """A video whose container is intact, but not its sixth frame."""
    content = path.read_bytes()
    with av.open(str(path)) as container:
        packet = bytes(list(container.demux(video=0))[5])
    path.write_bytes(content.replace(packet, bytes(len(packet))))


def test_quick_reads_containers_and_says_so(data, tmp_path, output):
    damaged = paths(data)[5]
    damage_a_frame(damaged)
    quick = output("scan", "--data", data, "--quick", "--workers", 1)
    assert "0 of 32 clips have defects" in quick
    assert "0 of 32 good clips were decoded; of the others only the containers were read" in quick
    # A scan that decodes is another one; a quick scan after it has nothing to do.
    thorough = output("scan", "--data", data, "--workers", 1)
    assert "0 of them unchanged" in thorough and f"  {damaged.stem}: cannot be decoded" in thorough
    assert "all frames of the 31 good clips were decoded" in thorough
    again = output("scan", "--data", data, "--quick", "--workers", 1)
    assert "32 of them unchanged" in again and "1 of 32 clips have defects" in again


def test_shows_splits_classes_and_what_it_does_not_use(data, tmp_path, output):
    tree = tmp_path / "tree"
    for split, folder in (("train", "train"), ("validation", "val")):
        dataset = read_dataset(data, split)
        for sample in dataset.samples:
            path = tree / folder / f"[{sample.label}]" / sample.path.name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(sample.path, path)
    for path in (tree / "val" / "[3]").iterdir():
        path.write_bytes(b"")
    (tree / "train" / "[0]" / "README.txt").touch()
    (tree / "train" / "[0]" / "film.mp4").symlink_to("nowhere")
    os.mkfifo(tree / "train" / "[0]" / "pipe.mp4")
    printed = output("scan", "--data", tree, "--workers", 1)
    assert "train: 24 good clips of 26" in printed and "validation: 7 good clips of 8" in printed
    assert "1 of 8 classes have no good clip in validation:\n  [3]\n" in printed
    rows = [line.replace("|", " ").split() for line in printed.splitlines() if line.startswith("| [")]
    assert rows[0] == ["[3]", "3", "0"] and [*rows[1:]] == [
        [f"[{n}]", "3", "1"] for n in (0, 1, 2, 4, 5, 6, 7)
    ]
    assert "1 files and folders are no clips and are not used:\n  train/[0]/README.txt\n" in printed
    assert "[0]/film.mp4: is a link that leads nowhere" in printed
    assert "[0]/pipe.mp4: is a pipe, expected a file or a folder" in printed


@pytest.mark.slow
def test_bad_validation_clips_stop_a_run_before_it_trains(data, tmp_path, error, output):
    for sample in read_dataset(data, "validation").samples[:3]:
        damage_a_frame(sample.path)
    arguments = finetune_arguments(data, tmp_path / "run", epochs=1)
    message = error(*arguments)
    assert "3 of 8 clips are bad, more than the limit of 10% (--quarantine-limit 0.1):" in message
    assert not (tmp_path / "run").exists()
    output(*arguments, "--quarantine-limit", 0.5)
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_run_stopped_by_bad_clips_goes_on_with_a_higher_limit(data, tmp_path, error, output):
    for sample in read_dataset(data, "train").samples[:8]:
        damage_a_frame(sample.path)
    arguments = finetune_arguments(data, tmp_path / "run", epochs=1)
    assert "clips are bad, more than the limit of 10% (--quarantine-limit 0.1)" in error(*arguments)
    output(*arguments, "--resume", "--quarantine-limit", 0.5)
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_cache_does_not_count_again_what_it_left_out(data, tmp_path, output):
    for sample in read_dataset(data, "train").samples[:8]:
        damage_a_frame(sample.path)
    output("scan", "--data", data, "--cache", tmp_path / "cache", "--workers", 1)
    output(*finetune_arguments(tmp_path / "cache", tmp_path / "run", epochs=1))
