"""Small data sets in the layouts of the real ones; only the order in time tells their classes apart.

Every clip is a permutation of one ordered set of pictures: an object at positions evenly spaced from left to
right. A class is an order of these pictures, so neither a single frame nor the set of frames tells the class.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from taf_fast.data.formats.ssv2 import label_text
from taf_fast.data.synth.formats import FORMATS, Written

SHAPES = ("disc", "square", "diamond", "ring", "cross", "triangle")
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 80, 230),
    "yellow": (230, 210, 50),
    "purple": (160, 60, 200),
    "white": (240, 240, 240),
    "black": (15, 15, 15),
    "orange": (240, 140, 30),
}


def _twice(n: int) -> np.ndarray:
    return np.concatenate([np.arange(0, n, 2), np.arange(1, n, 2)])


def _and_back(n: int) -> np.ndarray:
    return np.concatenate([np.arange(0, n, 2), np.arange(1, n, 2)[::-1]])


def _from_the_middle(n: int) -> np.ndarray:
    return np.roll(np.arange(n), -(n // 2))


def _mirrored(order: Callable[[int], np.ndarray]) -> Callable[[int], np.ndarray]:
    return lambda n: n - 1 - order(n)


# Class template -> order: the numbers of the n pictures, counted from the left, in the order they are shown.
ORDERS: dict[str, Callable[[int], np.ndarray]] = {
    "Moving [something] from left to right": np.arange,
    "Moving [something] from right to left": _mirrored(np.arange),
    "Moving [something] from left to right twice": _twice,
    "Moving [something] from right to left twice": _mirrored(_twice),
    "Moving [something] to the right and back again": _and_back,
    "Moving [something] to the left and back again": _mirrored(_and_back),
    "Moving [something] out to the right and in from the left": _from_the_middle,
    "Moving [something] out to the left and in from the right": _mirrored(_from_the_middle),
}


LONG_TERM = tuple(label_text(t) for t in ORDERS if t.endswith("and back again"))
"""Classes whose motion has two opposite phases: only frames far apart in time identify them."""


def pictures(rng: np.random.Generator, n: int, width: int, height: int) -> tuple[np.ndarray, str]:
    """Draws ``n`` pictures of one random object, from the left edge to the right.

    Returns the pictures (uint8 ``[n, height, width, 3]``) and the object's name ("red disc").
    """
    colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))
    cells = rng.uniform(70, 180, (rng.integers(3, 7), rng.integers(3, 9), 3))
    background = _stretch(_stretch(cells, height, 0), width, 1)

    radius = rng.uniform(0.14, 0.24) * height
    cy = rng.uniform(1.2 * radius, height - 1.2 * radius)
    cx = np.linspace(radius, width - radius, n)
    y = np.arange(height, dtype=np.float32)[None, :, None] - cy
    x = np.arange(width, dtype=np.float32)[None, None, :] - cx[:, None, None]
    inside = _inside(shape, x / radius, y / radius)

    frames = np.where(
        inside[..., None], np.array(COLOURS[colour], np.float32), background.astype(np.float32)[None]
    )
    frames *= rng.uniform(0.85, 1.15) * rng.uniform(0.97, 1.03, (n, 1, 1, 1)).astype(np.float32)
    frames += rng.integers(-6, 7, frames.shape, dtype=np.int8)
    return np.clip(frames, 0, 255).astype(np.uint8), f"{colour} {shape}"


def draw_clip(
    template: str, rng: np.random.Generator, n: int, width: int, height: int
) -> tuple[np.ndarray, str]:
    """The pictures of one random object in the order of class ``template``.

    Returns uint8 ``[n, height, width, 3]`` and the object's name. ``rng`` draws the appearance, never the
    order.
    """
    images, name = pictures(rng, n, width, height)
    return images[ORDERS[template](n)], name


def _stretch(grid: np.ndarray, length: int, axis: int) -> np.ndarray:
    """Linear interpolation of ``grid`` along ``axis`` to ``length`` samples."""
    position = np.linspace(0, grid.shape[axis] - 1, length)
    low = np.minimum(position.astype(int), grid.shape[axis] - 2)
    weight = np.expand_dims(position - low, tuple(i for i in range(grid.ndim) if i != axis))
    return grid.take(low, axis) * (1 - weight) + grid.take(low + 1, axis) * weight


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mask of the points (in units of the radius) inside the object; every shape is its own mirror image."""
    if shape == "disc":
        return x**2 + y**2 < 1
    if shape == "square":
        return np.maximum(abs(x), abs(y)) < 0.85
    if shape == "diamond":
        return abs(x) + abs(y) < 1.1
    if shape == "ring":
        return abs(x**2 + y**2 - 0.7) < 0.35
    if shape == "cross":
        return (np.maximum(abs(x), abs(y)) < 1) & (np.minimum(abs(x), abs(y)) < 0.35)
    return (abs(y) < 0.9) & (abs(x) < (y + 0.9) / 1.8)  # triangle


@dataclass(frozen=True)
class _Clip:
    id: str
    template: str
    seed: tuple[int, ...]


def write(
    root: str | os.PathLike,
    train_per_class: int = 40,
    val_per_class: int = 10,
    size: tuple[int, int] = (96, 72),
    frames: tuple[int, int] = (24, 40),
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    *,
    format: str,
) -> None:
    """Writes clips and their annotations under ``root``, in the layout of a real data set.

    ``format`` is "ssv2" (VP9 webm), "ssv1" (JPEG frames) or "diving48" (H.264 mp4); equal arguments draw
    equal clips in each. ``size`` is (width, height) in pixels, at least 16 each and even for mp4; a clip's
    length is uniform in ``frames`` (both ends included, at least 4) at 12 frames per second. The files depend
    only on the arguments. ``progress(done, total)`` is called after every clip. Raises FileExistsError when
    ``root`` is not an empty or new folder, and ValueError for impossible arguments.
    """
    root = Path(root)
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if min(train_per_class, val_per_class) < 0 or train_per_class + val_per_class == 0:
        raise ValueError(f"expected clips per class, got train {train_per_class} and val {val_per_class}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    if min(size) < 16:
        raise ValueError(f"size (width, height) must be at least 16 pixels, got {size}")
    if format == "diving48" and (size[0] % 2 or size[1] % 2):
        raise ValueError(f"size (width, height) must be even for mp4, got {size}")
    if not 4 <= frames[0] <= frames[1]:
        raise ValueError(f"frames must be (min, max) with 4 <= min <= max, got {frames}")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(f"{root} is not empty: a data set is only written to a new or empty folder")

    splits = _draw_splits({"train": train_per_class, "validation": val_per_class}, seed)
    layout = FORMATS[format]
    folder = root / layout.folder
    folder.mkdir(parents=True)
    # Encoding releases the interpreter lock: threads are enough.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {
            clip: pool.submit(_write_clip, layout.encode, folder / clip.id, clip, size, frames)
            for clips in splits.values()
            for clip in clips
        }
        for done, job in enumerate(as_completed(jobs.values()), 1):
            job.result()
            if progress:
                progress(done, len(jobs))
    layout.annotate(
        root, list(ORDERS), {name: [jobs[clip].result() for clip in clips] for name, clips in splits.items()}
    )


write_ssv1 = partial(write, format="ssv1")
write_ssv2 = partial(write, format="ssv2")
write_diving48 = partial(write, format="diving48")


def _draw_splits(per_class: dict[str, int], seed: int) -> dict[str, list[_Clip]]:
    """The clips of every split in random order with ids in random order, so that neither tells the class."""
    templates = [(split, t) for split, count in per_class.items() for t in ORDERS for _ in range(count)]
    rng = np.random.default_rng(seed)
    splits: dict[str, list[_Clip]] = {split: [] for split in per_class}
    for index, number in enumerate(rng.permutation(len(templates))):
        split, template = templates[number]
        splits[split].append(_Clip(str(index + 1), template, (seed, int(number))))
    return splits


def _write_clip(
    encode: Callable[[Path, np.ndarray], None],
    path: Path,
    clip: _Clip,
    size: tuple[int, int],
    frames: tuple[int, int],
) -> Written:
    """Draws and encodes one clip."""
    rng = np.random.default_rng(clip.seed)
    n = int(rng.integers(frames[0], frames[1] + 1))
    images, name = draw_clip(clip.template, rng, n, *size)
    encode(path, images)
    return Written(clip.id, clip.template, name, n)
