"""Scans that are kept: what is looked at again, and files that are torn, foreign or locked."""

import ctypes
import json
import os
import resource
import shutil
import struct
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data import crashing
from data.video_files import encode
from PIL import Image

from taf_fast.data import DataError, VideoDataset, read_dataset, read_manifest, read_ssv2, scan
from taf_fast.data.clip import Sample
from taf_fast.data.scanning import manifest as manifest_module
from taf_fast.data.scanning import recording
from taf_fast.data.scanning.checksum import checksum
from taf_fast.data.scanning.manifest import look
from taf_fast.data.scanning.manifest_file import NAME, ManifestFile
from taf_fast.data.scanning.parallel import in_processes
from taf_fast.data.scanning.recording import differences, distinct, outdated, record


def splits(root: Path) -> list[VideoDataset]:
    return [read_dataset(root, split) for split in ("train", "validation")]


def keep(root: Path, file: Path | None = None, workers: int = 1) -> Path:
    """Do what the command does, without printing."""
    samples = distinct(splits(root))
    with ManifestFile(file or root / NAME) as manifest:
        list(record(manifest, outdated(samples, manifest.entries, workers), workers))
        manifest.finish(samples)
    return manifest.path


def rows(file: Path) -> list[dict]:
    header, *lines = file.read_text().splitlines()
    assert json.loads(header) == {"taf_fast_manifest": 2}
    return [json.loads(line) for line in lines]


def without_checksums(clips):
    return [replace(clip, checksum=None) for clip in clips]


def one_clip(path: Path, frames=None) -> VideoDataset:
    return VideoDataset(path.parent, "train", ("a",), (Sample("1", path, 0, frames),), "list")


@pytest.mark.parametrize("name", ["ssv1", "ssv2", "diving48"])
def test_a_scan_from_the_file_is_the_scan_of_the_clips(roots, name, tmp_path, probed):
    root = shutil.copytree(roots[name], tmp_path / name)
    first = splits(root)[0]
    for sample in first.samples[:3]:
        (shutil.rmtree if sample.path.is_dir() else Path.unlink)(sample.path)
    expected = [scan(dataset) for dataset in splits(root)]
    file = keep(root)
    del probed[:]
    known = read_manifest(root)
    found = [scan(dataset, known=known) for dataset in splits(root)]
    assert sorted(probed) == sorted(sample.path.name for sample in first.samples[:3])
    for a, b in zip(found, expected, strict=True):
        assert without_checksums(a.clips) == list(b.clips) and a.classes == b.classes
    for clip in found[0].good:
        assert clip.checksum == zlib.crc32(b"".join(path.read_bytes() for path in clip.files))
    assert not {Path(row["path"]).is_absolute() for row in rows(file)} - {False}
    assert not any("label" in row for row in rows(file))


@pytest.mark.parametrize("name", ["ssv1", "ssv2"])
def test_the_file_is_the_same_for_any_number_of_workers(roots, name, tmp_path):
    files = [keep(roots[name], tmp_path / str(workers), workers) for workers in (1, 2, 5)]
    assert files[0].read_bytes() == files[1].read_bytes() == files[2].read_bytes()
    samples = [sample for dataset in splits(roots[name]) for sample in dataset.samples]
    assert [Path(row["path"]).name for row in rows(files[0])] == [sample.path.name for sample in samples]


@pytest.mark.parametrize("name", ["ssv1", "ssv2"])
def test_what_changed_is_looked_at_again_and_nothing_else(roots, name, tmp_path, probed):
    root = shutil.copytree(roots[name], tmp_path / name)
    keep(root)
    assert len(probed) == 40
    del probed[:]
    paths = [sample.path for sample in splits(root)[0].samples]
    keep(root)
    assert not probed
    os.utime(paths[4])
    known = read_manifest(root)
    assert [len(scan(dataset, known=known).good) for dataset in splits(root)] == [24, 16]
    assert probed == [paths[4].name]
    keep(root)
    keep(root)
    assert probed == [paths[4].name] * 2


def test_a_missing_clip_that_came_back_is_looked_at(copied_root, probed):
    path = splits(copied_root)[0].samples[2].path
    path.rename(copied_root / "away")
    file = keep(copied_root)
    assert rows(file)[2]["defect"] == "missing file" and rows(file)[2]["mtime_ns"] is None
    (copied_root / "away").rename(path)
    assert not scan(splits(copied_root)[0], known=read_manifest(copied_root)).defects
    del probed[:]
    keep(copied_root)
    assert probed == [path.name] and "defect" not in rows(file)[2]


def test_other_frames_of_a_folder_are_another_clip(roots, tmp_path, probed):
    folder = shutil.copytree(splits(roots["ssv1"])[0].samples[0].path, tmp_path / "clip")
    samples = distinct([one_clip(folder, (2, 6)), one_clip(folder)])
    with ManifestFile(tmp_path / NAME) as manifest:
        some, whole = record(manifest, outdated(samples, manifest.entries, 1), 1)
    assert (some.frames, some.source.first) == (5, 2) and whole.frames > 6
    assert some.checksum == zlib.crc32(b"".join(f.read_bytes() for f in sorted(folder.iterdir())[1:6]))
    del probed[:]
    known = read_manifest(tmp_path)
    assert scan(one_clip(folder, (2, 6)), known=known).clips[0].frames == 5 and not probed
    assert scan(one_clip(folder, (2, 7)), known=known).clips[0].frames == 6 and len(probed) == 1


def test_known_defects_are_not_looked_at_again(copied_root, probed):
    for sample, content in zip(splits(copied_root)[0].samples, (b"", b"noise" * 50), strict=False):
        sample.path.write_bytes(content)
    keep(copied_root)
    del probed[:]
    defects = scan(splits(copied_root)[0], known=read_manifest(copied_root)).defects
    assert [*defects.values()] == ["empty file", "cannot be opened: Invalid data found when processing input"]
    assert not probed


def test_torn_and_damaged_lines_are_looked_at_again(copied_root, probed):
    file = keep(copied_root)
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    for torn, names in (
        (whole[:-30], [40]),
        (whole + lines[3][:50], []),
        (b"".join(lines[:20]) + b"\0" * 100, range(20, 41)),
        (b"".join([*lines[:7], lines[7][:9] + lines[8], *lines[9:]]), [7, 8]),
        (b"".join([*lines[:7], b"[]\n", b'"path"\n', *lines[9:]]), [7, 8]),
        (lines[0], range(1, 41)),
        (lines[0][:9], range(1, 41)),
        (lines[0][:-1], range(1, 41)),
        (b"", range(1, 41)),
    ):
        file.write_bytes(torn)
        del probed[:]
        keep(copied_root)
        assert probed == [Path(json.loads(lines[number])["path"]).name for number in names]
        assert file.read_bytes() == whole


def test_nothing_is_appended_to_a_torn_line(clean_root, tmp_path):
    """Killed twice: what was scanned between the kills is there."""
    file = keep(clean_root, tmp_path / "file")
    whole = file.read_bytes()
    file.write_bytes(whole[:-30])
    samples = distinct(splits(clean_root))
    with ManifestFile(file) as manifest:
        assert len(outdated(samples, manifest.entries, 1)) == 1
        list(record(manifest, outdated(samples, manifest.entries, 1), 1))
    assert file.read_bytes() != whole
    assert not outdated(samples, read_manifest(clean_root, file), 1)


def test_checksum_of_files_of_any_size(tmp_path, rng):
    contents = [rng.bytes(size) for size in (0, 1, 2**20, 5 * 2**19 + 3)]
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)
    assert checksum(tmp_path / str(number) for number in range(4)) == zlib.crc32(b"".join(contents))
    assert checksum([]) == 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"id;label\n1;a\n", "is not a manifest: expected one that taf-fast scan wrote"),
        (b"\x1a\x45\xdf\xa3\0\xff" * 500, "is not a manifest"),
        (b"[" * 100_000, "is not a manifest"),
        (b'{"path": "a"}\n', "is not a manifest"),
        (b'{"taf_fast_manifest": 1}\n', "is a manifest of version 1, expected 2: delete it and run"),
        (b'{"taf_fast_manifest": 3}\n{"path": "a"}\n', "is a manifest of version 3, expected 2"),
    ],
)
def test_another_file_is_refused_and_left_alone(clean_root, tmp_path, content, reason):
    file = tmp_path / "file"
    file.write_bytes(content)
    for use in (lambda: read_manifest(clean_root, file), lambda: keep(clean_root, file)):
        with pytest.raises(DataError, match=reason) as error:
            use()
        assert str(file) in str(error.value)
    assert file.read_bytes() == content


def test_a_manifest_that_is_asked_for_must_be_there(clean_root, tmp_path):
    assert read_manifest(clean_root) == {}
    with pytest.raises(DataError, match=r"no manifest .*: write it with taf-fast scan --data .* --manifest"):
        read_manifest(clean_root, tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(DataError, match="is not a file, expected the manifest that taf-fast scan wrote"):
            read_manifest(clean_root, place)
    for place in (tmp_path / "none" / "file", tmp_path):
        with pytest.raises(DataError, match="cannot be written: .*; --manifest FILE chooses another place"):
            keep(clean_root, place)


def test_two_scans_at_once_are_refused(clean_root, tmp_path):
    with ManifestFile(tmp_path / "file") as manifest:
        with pytest.raises(DataError, match="file is being written by another taf-fast scan"):
            keep(clean_root, tmp_path / "file")
        assert not manifest.entries
        # The lock holds the old file, not the one that replaced it.
        manifest.finish([])
    keep(clean_root, tmp_path / "file")


def test_a_full_disk_is_an_error_and_keeps_what_had_room(clean_root, tmp_path, probed):
    with pytest.raises(DataError, match="/dev/full cannot be written: No space left"):
        keep(clean_root, Path("/dev/full"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
        with pytest.raises(DataError, match="file cannot be written: File too large"):
            keep(clean_root, tmp_path / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    lines = (tmp_path / "file").read_bytes().count(b"\n")
    assert lines > 3
    del probed[:]
    assert len(rows(keep(clean_root, tmp_path / "file"))) == 40
    assert len(probed) == 40 - (lines - 1)


def test_flipped_bytes_are_found_by_reading_them_all(copied_root, probed):
    samples = distinct(splits(copied_root))
    keep(copied_root)
    victim = [*samples.values()][7]
    data, before = bytearray(victim.path.read_bytes()), victim.path.stat()
    data[-2000:-1996] = bytes(byte ^ 255 for byte in data[-2000:-1996])
    victim.path.write_bytes(data)
    os.utime(victim.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    del probed[:]
    known = read_manifest(copied_root)
    scan(splits(copied_root)[0], known=known)
    keep(copied_root)
    assert not probed
    for workers in (1, 2):
        found = {sample.id: reason for sample, reason in differences(samples, known, workers) if reason}
        assert found.keys() == {victim.id} and "though the same size and time: CRC-32" in found[victim.id]


@pytest.mark.slow
def test_missing_and_changed_clips_differ_and_those_that_always_were_do_not(roots, tmp_path):
    root = shutil.copytree(roots["ssv1"], tmp_path / "ssv1")
    folders = [sample.path for sample in splits(root)[0].samples]
    shutil.rmtree(folders[0])
    keep(root)
    shutil.rmtree(folders[1])
    (folders[2] / "00001.jpg").unlink()
    frame, before = folders[3] / "00002.jpg", folders[3].stat().st_mtime_ns
    frame.write_bytes(frame.read_bytes()[:-1])
    assert folders[3].stat().st_mtime_ns == before
    found = dict(differences(distinct(splits(root)), read_manifest(root), 2))
    reasons = {sample.path: reason for sample, reason in found.items() if reason}
    assert reasons.keys() == set(folders[1:4])
    assert [reasons[folder].split(":")[0] for folder in folders[1:3]] == [
        "missing file",
        "changed since the scan",
    ]
    assert "other bytes" in reasons[folders[3]]


@pytest.mark.slow
def test_a_crash_costs_the_clip_that_caused_it(copied_root, monkeypatch, probed):
    items = [b"%d" % number for number in range(40)]
    # Reading from address 0.
    found = list(in_processes(ctypes.string_at, [*items[:15], 0, *items[15:]], 2))
    assert sorted(item for item, result in found if result == item) == sorted(items)
    assert [result for item, result in found if item == 0] == [None]

    first = splits(copied_root)[0]
    crash = first.samples[4].path.rename(copied_root / "crash.webm")
    dataset = replace(
        first, samples=tuple(replace(s, path=crash) if i == 4 else s for i, s in enumerate(first.samples))
    )
    samples = distinct([dataset])
    monkeypatch.setattr(recording, "_look", crashing.look)
    with ManifestFile(copied_root / NAME) as manifest:
        clips = {clip.path: clip.defect for clip in record(manifest, list(samples.items()), 2)}
    assert len(clips) == 24 and clips.pop(crash) == "crashes the process that scans it"
    assert not any(clips.values())
    scan(dataset, known=read_manifest(copied_root))
    assert not probed


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def patched(path: Path, content: bytes, mark: bytes, skip: int, new: bytes) -> None:
    at = content.index(mark) + len(mark) + skip
    path.write_bytes(content[:at] + new + content[at + len(new) :])


def test_absurd_headers_are_a_defect_before_anything_is_allocated(tmp_path):
    encode(tmp_path / "good.mp4", "libvpx-vp9", 12, "mp4")
    encode(tmp_path / "good.webm", "libvpx-vp9", 12)
    encode(tmp_path / "good.avi", "rawvideo", 12, "avi")
    mp4, webm, avi = ((tmp_path / f"good.{kind}").read_bytes() for kind in ("mp4", "webm", "avi"))
    # 2^31 samples of one byte.
    patched(tmp_path / "count.mp4", mp4, b"stsz", 4, struct.pack(">II", 1, 2**31))
    patched(tmp_path / "count.avi", avi, b"strh", 4 + 32, struct.pack("<I", 2**31))
    patched(tmp_path / "size.avi", avi, b"strf", 4 + 4, struct.pack("<ii", 100_000, 100_000))
    # A width in four bytes in place of width and height in one each.
    patched(tmp_path / "size.webm", webm, b"\xb0\x81\x60\xba\x81\x48", -6, b"\xb0\x84\x00\x01\x86\xa0")
    for name, (height, width) in {"huge": (65535, 65535), "wide": (10, 20_000)}.items():
        (tmp_path / name).mkdir()
        for number in (1, 2, 3):
            frame = tmp_path / name / f"{number:05d}.jpg"
            Image.new("RGB", (64, 48)).save(frame)
        first = tmp_path / name / "00001.jpg"
        patched(first, first.read_bytes(), b"\xff\xc0", 3, struct.pack(">HH", height, width))
    expected = {
        "count.mp4": "no frames",
        "count.avi": "None",  # a wrong count harms nobody
        "size.avi": "has frames of 0 x 0 pixels, expected 1 to 16384 a side",
        "size.webm": "cannot be opened",
        "huge": "frame 00001.jpg is too large: Image size (4294836225 pixels)",
        "wide": "has frames of 20000 x 10 pixels, expected 1 to 16384 a side",
    }
    samples = {name: Sample(name, tmp_path / name, 0) for name in expected}
    before = resident()
    for name, reason in expected.items():
        assert str(look(samples[name], with_checksum=True).facts.defect).startswith(reason), name
    assert resident() - before < 100 * 2**20


@pytest.mark.slow
def test_thousands_of_broken_files_take_no_memory_and_stop_nothing(roots, tmp_path, rng):
    """Headers with holes, in every format, lead to a defect and to nothing else."""
    first = {name: splits(root)[0].samples[0].path for name, root in roots.items()}
    contents = {"ssv2": first["ssv2"].read_bytes(), "diving48": first["diving48"].read_bytes()}
    contents["ssv1"] = (first["ssv1"] / "00001.jpg").read_bytes()
    broken = []
    for number in range(60):
        name = [*contents][number % 3]
        data = np.frombuffer(contents[name], np.uint8).copy()
        data[rng.integers(0, min(600, len(data)), 20)] = rng.integers(0, 256, 20)
        path = tmp_path / str(number)
        if name == "ssv1":
            shutil.copytree(first[name], path)
            (path / "00001.jpg").write_bytes(data)
        else:
            path.write_bytes(data)
        broken.append(Sample(str(number), path, 0))

    def scan_all() -> int:
        dataset = VideoDataset(tmp_path, "train", ("a",), tuple(broken * 20), "list")
        with warnings.catch_warnings():
            # PIL warns of pictures that are large, but not too large.
            warnings.simplefilter("ignore")
            assert len(scan(dataset).clips) == 1200
        return resident()

    before = scan_all()
    assert scan_all() - before < 40 * 2**20


def test_a_folder_that_cannot_be_listed_is_a_defect(clean_root, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(manifest_module, "probe", refuse)
    manifest = scan(read_ssv2(clean_root, "train"))
    assert set(manifest.defects.values()) == {"cannot be read: Permission denied"}
