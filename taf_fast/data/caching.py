"""Writing the cache of a data set."""

import contextlib
import fcntl
import io
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from taf_fast.files import write_atomically

from .cache import END, INDEX, clip_of_line, header_of, is_cache, pack_file, read_index
from .decoding.jpeg import decode_jpeg
from .decoding.pyav import decode_video
from .errors import DataError, different_size
from .formats import ssv1
from .formats.annotations import VideoDataset
from .scanning.manifest import Clip
from .scanning.parallel import in_processes

# Pixels: to what the official code resizes videos before it crops.
SHORT_SIDE = 256
# Off by one level of 255 on average, at 27 KiB a frame of 340 x 256.
QUALITY = 95
PACK_BYTES = 2**30


def write_cache(
    folder: str | os.PathLike, splits: Sequence[tuple[VideoDataset, Sequence[Clip]]], workers: int
) -> Iterator[Clip]:
    """Decodes the scanned clips of the splits of a data set into ``folder``, in ``workers`` processes; gives
    them as they get done, as they are in the cache. Clips with a defect are so there too.

    JPEG frames of at most 256 pixels on their short side are taken over byte for byte; all others are resized
    to that (bilinear, anti-aliased; never enlarged) and encoded with quality 95. Goes on where an earlier
    call was ended. DataError when ``folder`` holds something else, or the cache of other classes or clips, or
    cannot be written.
    """
    folder, dataset = Path(folder), splits[0][0]
    folder.mkdir(parents=True, exist_ok=True)
    clips = {(split.split, clip.id): clip for split, some in splits for clip in some}
    with _locked(folder):
        try:
            yield from _write(folder, dataset, clips, workers)
        except OSError as error:
            raise DataError(f"{folder} cannot be written: {error.strerror or error}") from error


def _write(
    folder: Path, dataset: VideoDataset, clips: dict[tuple[str, str], Clip], workers: int
) -> Iterator[Clip]:
    lines = _begun(folder, dataset, clips)
    for labels in filter(Path.is_file, ssv1.labels_files(dataset.root)):
        shutil.copy(labels, folder)  # the order of its names is the class order of some checkpoints
    done = {(line["split"], line["id"]) for line in lines}
    items = [item for item in clips.items() if item[0] not in done]
    positions = {key: position for position, key in enumerate(clips)}
    packs = _Packs(folder, lines)
    begun = b"".join(map(_encoded, [header_of(dataset), *lines]))
    write_atomically(folder / INDEX, lambda temporary: temporary.write_bytes(begun))
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
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise DataError(f"{folder} is being written by another taf-fast scan") from None
    finally:
        os.close(opened)


def _begun(folder: Path, dataset: VideoDataset, clips: dict[tuple[str, str], Clip]) -> list[dict]:
    """The clips' lines that are in the index already."""
    if not is_cache(folder):
        if any(folder.iterdir()):
            raise DataError(f"{folder} is not empty, expected a new folder or a cache to go on with")
        return []
    header, *lines = read_index(folder)
    lines = [line for line in lines if line != END]
    for line in lines:
        clip = clips.get((line["split"], line["id"]))
        if header != header_of(dataset) or clip is None or clip.checksum != line["source"]:
            raise DataError(f"{folder} is the cache of other data: clip {line['id']} is not the same")
    return lines


class _Packs:
    """The files of pictures, without what no line of the index knows of."""

    def __init__(self, folder: Path, lines: list[dict]):
        self._folder = folder
        ends = [(line["pack"], line["start"] + sum(line["sizes"])) for line in lines if "pack" in line]
        self._number, self._size = max(ends, default=(0, 0))
        with pack_file(folder, self._number).open("ab") as file:
            file.truncate(self._size)

    def append(self, pictures: list[bytes]) -> dict:
        """Adds a clip; returns what the index is to say of it."""
        if self._size >= PACK_BYTES:
            self._number, self._size = self._number + 1, 0
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
    try:
        if clip.codec == "jpeg":
            return [_small_enough(file.read_bytes(), file.name, clip) for file in clip.files]
        pictures = [_jpeg(Image.fromarray(frame), clip) for frame in decode_video(clip.path, clip.rotation)]
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except DataError as error:
        return str(error)
    if len(pictures) != clip.frames:
        return f"cannot be decoded: {len(pictures)} frames come out, expected {clip.frames}"
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
        size = tuple(round(side * scale) for side in picture.size)
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=QUALITY)
    return content.getvalue()


def _check_size(picture: Image.Image, clip: Clip) -> None:
    expected = (clip.height, clip.width)
    if picture.size[::-1] != expected:
        raise DataError(different_size(picture.size[::-1], expected))


def _encoded(line: dict) -> bytes:
    return json.dumps(line).encode() + b"\n"
