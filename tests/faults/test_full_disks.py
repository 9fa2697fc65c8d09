"""No room: a limit for the size of every file, which fails in the middle of a write as a full disk does."""

import ctypes
import errno
import shutil

import pytest
from faults.commands import often, result, temporaries
from faults.test_kills import NAMES, job_of
from run_command import finetune_arguments

LIMITS = (0, 1, 100, 3_000, 10_000, 100_000, 1_000_000, 20_000_000, 44_000_000, 60_000_000, 80_000_000)


@pytest.mark.slow
@pytest.mark.parametrize("limit", often((1, 3_000), LIMITS))
@pytest.mark.parametrize("name", often(("convert", "report"), NAMES))
def test_a_limit(fault, commands, finished, dataset, whole, options, tmp_path, name, limit):
    job = job_of(name, tmp_path / "work", dataset, whole, options)
    with fault(f"file-size limit: {name}"):
        ended = commands.run(job.arguments, limit=limit)
        if not ended.held():
            # Without any room, libraries miss a folder for temporary files before a file is written.
            reason = "No usable temporary directory" if "temporary" in ended.errors else "File too large"
            assert reason in ended.errors and ("cannot be written" in ended.errors or not limit), ended.errors
        assert not temporaries(tmp_path)
        commands.succeed(job.arguments)
        assert job.left(job.folder) == finished(name)[0]


@pytest.mark.slow
@pytest.mark.parametrize("limit", often((100_000,), LIMITS))
def test_a_limit_in_a_run_that_goes_on(fault, commands, dataset, half, whole, options, tmp_path, limit):
    out = shutil.copytree(half, tmp_path / "run")
    arguments = [*finetune_arguments(dataset, out, **options), "--resume"]
    with fault("file-size limit: a run that goes on"):
        ended = commands.run(arguments, limit=limit)
        if not ended.held():
            assert "cannot be written" in ended.errors
        commands.succeed(arguments)
        assert result(out) == result(whole) and not temporaries(out)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 20 MB, where that may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    library = ctypes.CDLL(None, use_errno=True)
    if library.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, b"size=20m"):
        pytest.skip(f"a tmpfs cannot be mounted: {errno.errorcode[ctypes.get_errno()]}")
    yield folder
    library.umount2(bytes(folder), 2)  # MNT_DETACH


@pytest.mark.slow
def test_a_disk_that_is_too_small(fault, commands, dataset, options, small_disk, tmp_path):
    with fault("full disk"):
        ended = commands.run(finetune_arguments(dataset, small_disk / "run", **options))
        assert not ended.held() and "No space left on device" in ended.errors, ended.errors
        assert not temporaries(small_disk)
