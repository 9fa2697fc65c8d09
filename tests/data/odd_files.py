"""Every kind of video file that people have: codecs, containers, and what makes frames hard to count."""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np

SIZE = (64, 48)
FRAMES = 24
CODECS = {
    "h264": ("libx264", "mp4 mov mkv avi ts flv h264"),
    "hevc": ("libx265", "mp4 mov mkv ts flv hevc"),
    "vp8": ("libvpx", "webm mkv avi"),
    "vp9": ("libvpx-vp9", "webm mkv mp4 avi"),
    "av1": ("libsvtav1", "mp4 mkv webm obu"),
    "mpeg2": ("mpeg2video", "mpg ts mkv mp4 avi m2v"),
    "mpeg4": ("mpeg4", "mp4 mov mkv avi ts m4v"),
    "mjpeg": ("mjpeg", "avi mov mkv mp4 mjpeg"),
    "prores": ("prores_ks", "mov mkv"),
    "wmv": ("wmv2", "wmv avi"),
    "flv1": ("flv", "flv avi"),
    "raw": ("rawvideo", "avi mov mkv"),
    "ffv1": ("ffv1", "mkv avi"),
}
FORMATS = {
    "mkv": "matroska",
    "ts": "mpegts",
    "mpg": "mpeg",
    "wmv": "asf",
    "m2v": "mpeg2video",
    "h264": "h264",
    "hevc": "hevc",
    "m4v": "m4v",
    "mjpeg": "mjpeg",
    "obu": "obu",
}
PIXELS = {"mjpeg": "yuvj420p", "prores": "yuv422p10le"}
ODD_PIXELS = {"h264": "yuv444p", "hevc": "yuv444p"}
TEN_BITS = {"h264": "yuv420p10le", "hevc": "yuv420p10le", "av1": "yuv420p10le"}
B_FRAMES = ("h264", "hevc", "mpeg2", "mpeg4")
TIMED = ("mp4", "mov", "mkv", "webm", "ts", "flv")
EQUAL_TIMES = ("mkv", "webm", "flv")
JOINED = ("ts", "mpg", "h264", "hevc", "m2v", "m4v", "mjpeg", "obu", "flv", "mkv", "webm", "avi")
ROTATED = ("mp4", "mov", "mkv", "webm")
TWO_STREAMS = ("mp4", "mov", "mkv", "webm", "ts", "avi")


@dataclass(frozen=True)
class Case:
    """A file to write; ``stream`` is the number of the video stream that counts."""

    codec: str
    container: str
    feature: str
    write: Callable[[Path], None]
    stream: int = 0

    def __str__(self) -> str:
        return f"{self.codec}-{self.container}-{self.feature}"


def picture(index: int, size: tuple[int, int]) -> np.ndarray:
    """No two frames are alike, nor is a part of one."""
    width, height = size
    rng = np.random.default_rng(index)
    cells = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return cells.repeat(8, 0).repeat(8, 1)[:height, :width]


def write(
    path: Path,
    codec: str,
    container: str,
    size: tuple[int, int] = SIZE,
    frames: int = FRAMES,
    pixels: str | None = None,
    options: dict[str, str] | None = None,
    b_frames: int = 0,
    times: Callable[[int], int] | None = None,
    rotation: int | None = None,
    streams: int = 1,
    cover: bool = False,
    interlaced: bool = False,
) -> None:
    encoder = CODECS[codec][0]
    pixels = pixels or PIXELS.get(codec, "rgb24" if (codec, container) == ("raw", "mov") else "yuv420p")
    format = FORMATS.get(container, container)
    muxing = {"movflags": "faststart"} if container in ("mp4", "mov") else {}
    with av.open(str(path), "w", format=format, options=muxing) as output:
        if cover:
            still = output.add_stream("mjpeg", rate=25)
            still.width, still.height, still.pix_fmt = 32, 32, "yuvj420p"
        videos = [_stream(output, encoder, size, pixels, options) for _ in range(streams)]
        count = iter(range(1000))
        for stream in videos:
            if b_frames:
                stream.codec_context.max_b_frames = b_frames
            if interlaced:
                stream.codec_context.flags |= 0x00040000 | 0x20000000  # ILDCT, ILME
            if rotation is not None:
                stream.set_display_rotation(rotation)
        if cover:
            frame = av.VideoFrame.from_ndarray(picture(999, (32, 32)), format="rgb24")
            for packet in [*still.encode(frame), *still.encode()]:
                output.mux(packet)
        for index in range(frames):
            for number, stream in enumerate(videos):
                frame = av.VideoFrame.from_ndarray(picture(index + 500 * number, size), format="rgb24")
                packets = stream.encode(frame)
                output.mux(_timed(packets, count, times))
        for stream in videos:
            output.mux(_timed(stream.encode(), count, times))


def _timed(packets, count: Iterator[int], times: Callable[[int], int] | None):
    if times is not None:
        for packet in packets:
            packet.time_base = Fraction(1, 1000)
            packet.pts = packet.dts = times(next(count))
    return packets


def _stream(output, encoder, size, pixels, options):
    stream = output.add_stream(encoder, rate=25, options=options or {})
    stream.width, stream.height = size
    stream.pix_fmt = pixels
    stream.codec_context.thread_count = 1
    return stream


def joined(path: Path, codec: str, container: str) -> None:
    """Two files, byte after byte: times start again."""
    parts = []
    for part in range(2):
        write(path, codec, container, frames=FRAMES // 2 + part)
        parts.append(path.read_bytes())
    path.write_bytes(b"".join(parts))


def cut(path: Path, codec: str, container: str) -> None:
    write(path, codec, container)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])


def _boxes(content: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    while start + 8 <= end:
        size, name = struct.unpack(">I4s", content[start : start + 8])
        yield name, start, size
        start += size


def edited(path: Path, codec: str, container: str, edits: list[tuple[int, int]]) -> None:
    """Only the parts of the mp4 that ``edits`` (duration, start; in frames) name are to be shown."""
    write(path, codec, container, options={"g": "6"}, b_frames=2 if codec in B_FRAMES else 0)
    content = path.read_bytes()
    places = {name: (at, size) for name, at, size in _boxes(content, 0, len(content))}
    moov = places[b"moov"][0]
    inside = {name: (at, size) for name, at, size in _boxes(content, moov + 8, moov + places[b"moov"][1])}
    trak, trak_size = inside[b"trak"]
    parts = {name: (at, size) for name, at, size in _boxes(content, trak + 8, trak + trak_size)}
    mdia, mdia_size = parts[b"mdia"]
    media = {name: (at, size) for name, at, size in _boxes(content, mdia + 8, mdia + mdia_size)}
    (media_rate,) = struct.unpack(">I", content[media[b"mdhd"][0] + 20 :][:4])
    (movie_rate,) = struct.unpack(">I", content[inside[b"mvhd"][0] + 20 :][:4])
    offset = 0
    if b"edts" in parts:  # B-frames: the first picture is shown at this time
        (offset,) = struct.unpack(">i", content[parts[b"edts"][0] + 28 :][:4])
    rows = [
        struct.pack(">IiI", duration * movie_rate // 25, offset + start * media_rate // 25, 1 << 16)
        for duration, start in edits
    ]
    elst = struct.pack(">I4sII", 16 + 12 * len(rows), b"elst", 0, len(rows)) + b"".join(rows)
    edts = struct.pack(">I4s", 8 + len(elst), b"edts") + elst
    at, size = parts.get(b"edts", (parts[b"tkhd"][0] + parts[b"tkhd"][1], 0))
    grown = len(edts) - size
    new = bytearray(content[:at] + edts + content[at + size :])
    for place, old in ((moov, places[b"moov"][1]), (trak, trak_size)):
        new[place : place + 4] = struct.pack(">I", old + grown)
    stco = bytes(new).index(b"stco") + 4
    (count,) = struct.unpack(">I", new[stco + 4 : stco + 8])
    for number in range(count):
        place = stco + 8 + 4 * number
        (value,) = struct.unpack(">I", new[place : place + 4])
        new[place : place + 4] = struct.pack(">I", value + grown)
    path.write_bytes(bytes(new))


def with_empty_chunks(path: Path, codec: str, container: str) -> None:
    """AVI in which empty chunks stand for dropped frames, and a header that counts them."""
    write(path, codec, container)
    content = path.read_bytes()
    movi = content.index(b"movi") - 8
    (size,) = struct.unpack("<I", content[movi + 4 : movi + 8])
    chunks, at, index = b"", movi + 12, b""
    for number in range(FRAMES):
        (length,) = struct.unpack("<I", content[at + 4 : at + 8])
        chunk = content[at : at + 8 + length + length % 2]
        at += len(chunk)
        for piece in [chunk] + [chunk[:4] + bytes(4)] * (number in (3, 11)):
            index += piece[:4] + struct.pack("<II", 16 if number == 0 else 0, 4 + len(chunks)) + piece[4:8]
            chunks += piece
    body = b"movi" + chunks
    new = content[:movi] + b"LIST" + struct.pack("<I", len(body)) + body
    new += b"idx1" + struct.pack("<I", len(index)) + index
    path.write_bytes(b"RIFF" + struct.pack("<I", len(new) - 8) + new[8:])


def with_a_wrong_count(path: Path, codec: str, container: str) -> None:
    """AVI whose header counts more frames than there are."""
    write(path, codec, container)
    content = path.read_bytes()
    at = content.index(b"strh") + 8 + 32
    path.write_bytes(content[:at] + struct.pack("<I", 90) + content[at + 4 :])


def packed(path: Path, codec: str, container: str) -> None:
    """AVI as XviD writes it: a B-frame shares a packet with the P-frame before it, an empty one follows."""
    write(path, codec, container, b_frames=1, options={"g": "12"})
    with av.open(str(path)) as source:
        template = source.streams.video[0]
        pictures = [bytes(packet) for packet in source.demux(template) if packet.size]
        first = pictures[0].index(b"\0\0\1\xb3") if b"\0\0\1\xb3" in pictures[0] else 0
        signed = b"\0\0\1\xb2DivX503b1393p\0"
        pictures[0] = pictures[0][:first] + signed + pictures[0][first:]
        packets: list[bytes] = []
        for picture in pictures:
            if picture[picture.index(b"\0\0\1\xb6") + 4] >> 6 == 2:
                packets[-1] += picture
                packets.append(b"\x00\x00\x01\xb6\x53\xbf")
            else:
                packets.append(picture)
        copy = path.with_name(f"{path.name}.packed")
        with av.open(str(copy), "w", format="avi") as output:
            stream = output.add_stream_from_template(template)
            for number, content in enumerate(packets):
                packet = av.Packet(content)
                packet.stream, packet.time_base = stream, Fraction(1, 25)
                packet.pts = packet.dts = number
                output.mux(packet)
    copy.rename(path)


def late(path: Path, codec: str, container: str, skipped: int) -> None:
    """A recording that begins ``skipped`` packets after the second key frame of a stream with open GOPs."""
    write(path, codec, container, frames=40, **_options(codec, "open_gop"))
    with av.open(str(path)) as source:
        packets = [packet for packet in source.demux(video=0) if packet.size]
        second = [number for number, packet in enumerate(packets) if packet.is_keyframe][1]
        rest = packets[second + skipped :]
        copy = path.with_name(f"{path.name}.late")
        if container == "ts":
            copy.write_bytes(path.read_bytes()[rest[0].pos :])
        elif container == "mkv":
            with av.open(str(copy), "w", format="matroska") as output:
                stream = output.add_stream_from_template(source.streams.video[0])
                for packet in rest:
                    packet.stream = stream
                    output.mux(packet)
        else:
            copy.write_bytes(b"".join(map(bytes, rest)))
    copy.rename(path)


def ended(path: Path, codec: str, container: str) -> None:
    """Open GOPs in HEVC, and an end of the sequence before the third key frame: decoders leave out the frames
    after it that need earlier ones."""
    write(path, codec, container, frames=40, **_options(codec, "open_gop"))
    copy = path.with_name(f"{path.name}.ended")
    with (
        av.open(str(path)) as source,
        av.open(str(copy), "w", format=FORMATS.get(container, container)) as output,
    ):
        stream, keys = output.add_stream_from_template(source.streams.video[0]), 0
        packets = [packet for packet in source.demux(video=0) if packet.size]
        for number, (packet, following) in enumerate(zip(packets, [*packets[1:], None], strict=True)):
            keys += following is not None and following.is_keyframe
            end = b"\0\0\0\2\x48\1" if keys == 2 and following.is_keyframe else b""
            new = av.Packet(bytes(packet) + end)
            new.stream, new.time_base, new.is_keyframe = stream, packet.time_base, packet.is_keyframe
            new.pts, new.dts = packet.pts, packets[0].pts + number - len(packets)
            output.mux(new)
    copy.rename(path)


def add_an_empty_sample(path: Path) -> None:
    """Puts an eighth sample without data into an mp4: a frame that was dropped."""
    content = bytearray(path.read_bytes().replace(b"edts", b"free"))  # an edit would end a frame earlier

    def add(name: bytes, offset: int, value: int) -> None:
        at = content.index(name) + offset
        (old,) = struct.unpack(">I", content[at : at + 4])
        content[at : at + 4] = struct.pack(">I", old + value)

    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsz"):
        add(name, -4, 4)
    add(b"stsz", 12, 1)  # samples
    add(b"stts", 12, 1)  # those that last as long as the first
    add(b"stsc", 16, 1)  # those in the first chunk
    add(b"stco", 12, 4)  # where it begins
    sizes = content.index(b"stsz") + 16
    content[sizes + 28 : sizes + 28] = bytes(4)
    path.write_bytes(content)


def turn(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Puts these numbers (65536 is 1) into the rows of an mp4's display matrix."""
    one, content = 1 << 16, path.read_bytes()
    straight = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    a, b, c, d = matrix
    at = content.index(straight, content.index(b"tkhd"))
    new = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content[:at] + new + content[at + len(new) :])


def of_two_codecs(path: Path, codecs: tuple[str, str], container: str) -> None:
    """Two video streams of 24 frames, which are not the same."""
    with av.open(str(path), "w", format=FORMATS.get(container, container)) as output:
        streams = [
            _stream(output, CODECS[codec][0], SIZE, PIXELS.get(codec, "yuv420p"), None) for codec in codecs
        ]
        for index in range(FRAMES):
            for number, stream in enumerate(streams):
                frame = av.VideoFrame.from_ndarray(picture(index + 500 * number, SIZE), format="rgb24")
                output.mux(stream.encode(frame))
        for stream in streams:
            output.mux(stream.encode())


def _options(codec: str, feature: str) -> dict:
    if feature == "b_frames":
        extra = {"b_strategy": "0"} if codec == "h264" else {}
        return {"b_frames": 2, "options": {"g": "12", **extra}}
    if feature == "open_gop":
        params = {"h264": "x264-params", "hevc": "x265-params"}
        if codec in params:
            return {"b_frames": 2, "options": {params[codec]: "open-gop=1:keyint=8:min-keyint=8:log-level=0"}}
        return {"b_frames": 2, "options": {"g": "8"}}
    if feature == "vfr":
        return {"times": lambda index: 40 * index + 37 * index % 31}
    if feature == "equal_times":
        return {"times": lambda index: 40 * (10 if index == 11 else index)}
    return {
        "plain": {},
        "rotated": {"rotation": 90},
        "odd_size": {"size": (63, 47), "pixels": ODD_PIXELS.get(codec)},
        "ten_bits": {"pixels": TEN_BITS.get(codec)},
        "interlaced": {"interlaced": True},
        "two_streams": {"streams": 2},
        "cover": {"cover": True},
        "alt_ref": {"options": {"auto-alt-ref": "1", "lag-in-frames": "16", "arnr-maxframes": "3"}},
    }[feature]


def _features(codec: str, container: str) -> Iterator[str]:
    yield "plain"
    if codec in B_FRAMES:
        yield "b_frames"
        yield "open_gop"
    if container in TIMED:
        yield "vfr"
    if container in EQUAL_TIMES:
        yield "equal_times"
    if container in ROTATED:
        yield "rotated"
    if codec not in ("prores", "mpeg2", "wmv"):
        yield "odd_size"
    if codec in TEN_BITS:
        yield "ten_bits"
    if codec in ("h264", "mpeg2", "mpeg4"):
        yield "interlaced"
    if container in TWO_STREAMS:
        yield "two_streams"
    if container in ("mp4", "mov", "mkv"):
        yield "cover"
    if codec in ("vp8", "vp9"):
        yield "alt_ref"


EDITS = {
    "start": [(19, 5)],
    "end": [(15, 0)],
    "both": [(14, 5)],
    "two_parts": [(6, 2), (7, 13)],
}


def cases() -> list[Case]:
    found = []
    for codec, (_, containers) in CODECS.items():
        for container in containers.split():
            for feature in _features(codec, container):

                def writer(path: Path, codec=codec, container=container, feature=feature) -> None:
                    write(path, codec, container, **_options(codec, feature))

                found.append(Case(codec, container, feature, writer, int(feature == "cover")))
            more = {"cut": cut}
            if container in JOINED:
                more["joined"] = joined
            if container == "avi":
                more |= {"empty_chunks": with_empty_chunks, "wrong_count": with_a_wrong_count}
            if codec == "mpeg4" and container == "avi":
                more["packed"] = packed
            if codec in B_FRAMES and container in ("ts", "mkv", "h264", "hevc", "m2v", "m4v"):
                more |= {"late_at_key": partial(late, skipped=0), "late": partial(late, skipped=2)}
            if codec == "hevc" and container in ("mp4", "mkv"):
                more["ended"] = ended
            for feature, function in more.items():

                def writer(path: Path, codec=codec, container=container, function=function) -> None:
                    function(path, codec, container)

                found.append(Case(codec, container, feature, writer))
            if container in ("mp4", "mov"):
                for name, edits in EDITS.items():

                    def writer(path: Path, codec=codec, container=container, edits=edits) -> None:
                        edited(path, codec, container, edits)

                    found.append(Case(codec, container, f"edit_{name}", writer))
    return found
