"""The walk through the parts of Matroska files."""

import av
import pytest
from data.video_files import encode

from taf_fast.data.scanning.matroska import matroska_defect
from taf_fast.data.scanning.probe import Facts, probe


@pytest.fixture
def video(tmp_path, rng):
    """A function that writes bytes to a file and returns its path."""

    def write(content: bytes):
        path = tmp_path / "video"
        path.write_bytes(content)
        return path

    return write


def test_whole_files_are_whole(clean, tmp_path, real_clip):
    assert not any(matroska_defect(clip.path) for clip in clean.clips)
    for codec, container in (("libx264", "matroska"), ("libx264", "mp4"), ("mpeg4", "avi")):
        encode(tmp_path / "file", codec, 12, container)
        assert matroska_defect(tmp_path / "file") is None
    for name in ("testsrc2_vp8.webm", "testsrc2_vp9.webm", "flipping_a_pancake.mkv"):
        assert matroska_defect(real_clip(name)) is None


def test_every_cut_is_found(clean, video, rng):
    content = clean.clips[0].path.read_bytes()
    for length in [len(content) - 1, *rng.integers(100, len(content), 50).tolist()]:
        assert matroska_defect(video(content[:length])) == f"truncated: {length} of {len(content)} bytes"


def test_an_overwritten_part_is_found(clean, video):
    """Zeros from anywhere to the end hide at least what comes last."""
    content = clean.clips[0].path.read_bytes()
    cues = content.rindex(b"\x1c\x53\xbb\x6b")
    for length in (len(content) - cues, 2000, 4000):
        found = matroska_defect(video(content[:-length] + bytes(length)))
        assert found.startswith("damaged at byte ") and found.endswith(f" of {len(content)}")
    for byte in (b"\0", b"B"):  # neither is the name of a part
        found = matroska_defect(video(content[:cues] + byte * (len(content) - cues)))
        assert found == f"damaged at byte {cues} of {len(content)}"


def test_any_bytes_can_be_looked_at(clean, video, rng):
    content = clean.clips[0].path.read_bytes()
    for _ in range(1000):
        head = bytearray(content[: rng.integers(0, 300)])
        for at in rng.integers(0, max(1, len(head)), 3):
            if len(head) > 4:
                head[max(4, at)] = rng.integers(256)
        matroska_defect(video(bytes(head)))


def test_parts_of_unknown_size_end_the_walk(video):
    """As a browser records."""
    segment = b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x01" + b"\xff" * 7
    assert matroska_defect(video(segment)) is None
    assert matroska_defect(video(b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x85\x1f\x43\xb6\x75\xff")) is None


def test_a_last_frame_may_be_shown_for_long(tmp_path):
    """The duration says nothing about the number of frames."""
    encode(tmp_path / "even.webm", "libvpx-vp9", 12)
    with (
        av.open(str(tmp_path / "even.webm")) as even,
        av.open(str(tmp_path / "held.webm"), "w") as held,
    ):
        stream = held.add_stream_from_template(even.streams.video[0])
        packets = [packet for packet in even.demux(video=0) if packet.size]
        packets[-1].duration = 5000
        for packet in packets:
            packet.stream = stream
            held.mux(packet)
    facts = Facts()
    probe(tmp_path / "held.webm", facts)
    assert facts.frames == 12
