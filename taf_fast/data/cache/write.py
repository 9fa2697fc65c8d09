"""Writing the cache of a data set."""

import contextlib
import io
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from taf_fast.data.cache.read import END, INDEX, clip_of_line, header_of, is_cache, pack_file, read_index
from taf_fast.data.clip import (
    MIN_FRAMES,
    Clip,
    FrameFolder,
    VideoDataset,
    VideoFile,
    different_size,
    too_short,
)
from taf_fast.data.decoding.jpeg import decode_jpeg, size_of
from taf_fast.data.decoding.pyav import decode_video
from taf_fast.data.formats import ssv1
from taf_fast.data.scanning.parallel import in_processes
from taf_fast.errors import DataError
from taf_fast.files import lock, make_folder, remove_temporaries, write_atomically
from taf_fast.parsing import to_json

# Pixels: the size to which the official code resizes videos before it crops.
SHORT_SIDE = 256
# The error is one level of 255 on average; a frame of 340 x 256 takes 27 KiB.
QUALITY = 95
PACK_BYTES = 2**30


def write_cache(
    folder: str | os.PathLike, splits: Sequence[tuple[VideoDataset, Sequence[Clip]]], workers: int
) -> Iterator[Clip]:
    """Decodes the scanned clips of the splits of a data set into ``folder``, in ``workers`` processes.

    Yields the clips of the cache as they get done; clips with a defect keep it. JPEG frames with a short side
    of at most 256 pixels are copied byte for byte; all others are resized to that short side (bilinear,
    anti-aliased, never enlarged) and encoded with quality 95. Continues where an earlier call ended.
    DataError if ``folder`` holds something else or a cache of other classes or clips, or cannot be written;
    FileError if it cannot be made.
    """
    folder = Path(folder)
    make_folder(folder)
    dataset = splits[0][0]
    clips = {(split.split, clip.id): clip for split, some in splits for clip in some}
    with _locked(folder):
        remove_temporaries(folder)
        try:
            yield from _write(folder, dataset, clips, workers)
        except OSError as error:
            raise DataError(f"{folder} cannot be written: {error.strerror or error}") from error


def _write(
    folder: Path, dataset: VideoDataset, clips: dict[tuple[str, str], Clip], workers: int
) -> Iterator[Clip]:
    lines = _begun(folder, dataset, clips)
    for labels in filter(Path.is_file, ssv1.labels_files(dataset.root)):
        shutil.copy(labels, folder)  # some checkpoints have their classes in the order of this file
    done = {(line["split"], line["id"]) for line in lines}
    items = [item for item in clips.items() if item[0] not in done]
    positions = {key: position for position, key in enumerate(clips)}
    begun = b"".join(map(_encoded, [header_of(dataset), *lines]))
    write_atomically(folder / INDEX, lambda temporary: temporary.write_bytes(begun))
    packs = _Packs(folder, lines)
    with (folder / INDEX).open("ab") as index:
        for ((split, name), clip), pictures in in_processes(_encode, items, workers):
            line = {"split": split, "id": name, "label": clip.label}
            line |= {"position": positions[split, name], "source": clip.checksum}
            if isinstance(pictures, list):
                line |= packs.append(pictures)
            else:
                line["defect"] = pictures or "crashes the process that decodes it"
            index.write(_encoded(line))
            index.flush()
            yield clip_of_line(folder, line)
        index.write(_encoded(END))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    opened = os.open(folder, os.O_RDONLY)
    try:
        if not lock(opened):
            raise DataError(f"{folder} is being written by another taf-fast scan")
        yield
    finally:
        os.close(opened)


def _begun(folder: Path, dataset: VideoDataset, clips: dict[tuple[str, str], Clip]) -> list[dict]:
    """The lines of the clips that are in the index already."""
    if not is_cache(folder):
        # What comes before the index stays there after a kill.
        first = {labels.name for labels in ssv1.labels_files(dataset.root)}
        if any(path.name not in first for path in folder.iterdir()):
            raise DataError(f"{folder} is not empty, expected a new folder or a cache to continue")
        return []
    header, *lines = read_index(folder)
    lines = [line for line in lines if line != END]
    for line in lines:
        clip = clips.get((line["split"], line["id"]))
        if header != header_of(dataset) or clip is None or clip.checksum != line["source"]:
            raise DataError(f"{folder} is the cache of other data: clip {line['id']} is not the same")
    return lines


class _Packs:
    """The files of pictures; bytes that no line of the index refers to are cut off."""

    def __init__(self, folder: Path, lines: list[dict]):
        self._folder = folder
        ends = [(line["pack"], line["start"] + sum(line["sizes"])) for line in lines if "pack" in line]
        last: tuple[int, int] = max(ends, default=(0, 0))
        self._number = last[0]
        self._size = last[1]
        with pack_file(folder, self._number).open("ab") as file:
            file.truncate(self._size)

    def append(self, pictures: list[bytes]) -> dict:
        """Adds a clip; returns the fields of its line in the index."""
        if self._size >= PACK_BYTES:
            self._number += 1
            self._size = 0
        start, content = self._size, b"".join(pictures)
        with pack_file(self._folder, self._number).open("ab") as file:
            file.write(content)
        self._size += len(content)
        with Image.open(io.BytesIO(pictures[0])) as first:
            width, height = first.size
        return {
            "pack": self._number,
            "start": start,
            "sizes": list(map(len, pictures)),
            "width": width,
            "height": height,
            "checksum": zlib.crc32(content),
        }


def _encode(item: tuple[tuple[str, str], Clip]) -> list[bytes] | str:
    """The clip's frames as JPEG, or its defect."""
    clip = item[1]
    if clip.defect is not None:
        return clip.defect
    source = clip.source
    assert isinstance(source, FrameFolder | VideoFile), source
    try:
        if isinstance(source, FrameFolder):
            return [_small_enough(file.read_bytes(), file.name, clip) for file in clip.files]
        pictures = [_jpeg(Image.fromarray(frame), clip) for frame in decode_video(clip, source)]
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except DataError as error:
        return str(error)
    if clip.decoded and len(pictures) != clip.frames:
        return f"cannot be decoded: {len(pictures)} frames come out, expected {clip.frames}"
    if len(pictures) < MIN_FRAMES:
        return too_short(len(pictures))
    return pictures


def _small_enough(content: bytes, name: str, clip: Clip) -> bytes:
    picture = decode_jpeg(io.BytesIO(content), name)
    if min(picture.size) > SHORT_SIDE:
        return _jpeg(picture, clip)
    _check_size(picture, clip)
    return content


def _jpeg(picture: Image.Image, clip: Clip) -> bytes:
    _check_size(picture, clip)
    scale = SHORT_SIDE / min(picture.size)
    if scale < 1:
        width, height = (round(side * scale) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=QUALITY)
    return content.getvalue()


def _check_size(picture: Image.Image, clip: Clip) -> None:
    found = size_of(picture)
    if found != clip.size:
        raise DataError(different_size(found, clip.size))


def _encoded(line: dict) -> bytes:
    return to_json(line).encode() + b"\n"
