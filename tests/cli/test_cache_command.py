"""The command `taf-fast scan --cache`: a cache is a data set to all commands."""

import shutil

import pytest
from run_command import finetune_arguments, taf_fast

from taf_fast.data.cache.read import INDEX


@pytest.mark.slow
def test_a_cache_is_written_verified_and_trained_on(dataset, tmp_path, output, error):
    data = shutil.copytree(dataset, tmp_path / "data")
    scan = ("scan", "--data", data, "--workers", 1)
    folder = tmp_path / "cache"
    printed = output(*scan, "--cache", folder)
    assert f"{folder}: 32 of 32 clips" in printed
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert f"{folder}: 32 of 32 clips" in output(*scan, "--cache", folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before

    assert f"0 of 32 clips differ from {folder / INDEX}" in output("scan", "--data", folder, "--verify")
    assert "is a cache, which needs no scan" in error("scan", "--data", folder)
    assert "--verify writes nothing" in error(*scan, "--cache", folder, "--verify")
    assert "data is not empty, expected a new folder or a cache" in error(*scan, "--cache", data)

    output(*finetune_arguments(folder, tmp_path / "run", epochs=1))
    weights = tmp_path / "run" / "model.safetensors"
    assert "top-1" in output("evaluate", "--data", folder, "--checkpoint", weights, "--device", "cpu")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before

    video = next(data.rglob("*.webm"))
    shutil.copy(next(other for other in data.rglob("*.webm") if other != video), video)
    assert f"{folder} is the cache of other data: clip {video.stem}" in error(*scan, "--cache", folder)

    pack = folder / "frames-00000.jpegs"
    content = bytearray(pack.read_bytes())
    content[len(content) // 2] ^= 1
    pack.write_bytes(content)
    found = taf_fast("scan", "--data", folder, "--verify")
    assert found.returncode == 1 and "1 of 32 clips differ" in found.stdout
