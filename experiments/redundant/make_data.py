"""Writes clips whose class, a handwritten digit, is told twice: by an easy cue early and by a hard one late.

python experiments/redundant/make_data.py FOLDER [--train-per-class 8] [--val-per-class 2] [--seed 1]

The digits are scikit-learn's. FOLDER gets ``train`` and ``val`` with a folder for each class, and
``cues.csv``, which says of every clip which cues it has, in which frames, and which digits they show.
Training clips have both. Every validation clip is written twice, with both and with the hard one alone.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from taf_fast.files import write_csv

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZE = 36  # pixels
SEGMENTS, PER_SEGMENT = 8, 3  # frames
CUES = ("easy", "hard")
VERSIONS = {"both": CUES, "hard": ("hard",)}

Span = tuple[int, int]


def draw_clip(
    rng: np.random.Generator, digits: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, Span]]:
    """One clip with both cues and with the hard one alone, equal except for the frames of the easy cue.

    Args:
        digits: the digit that each cue shows, 8 x 8, from 0 (paper) to 16 (ink).

    Returns:
        The versions, uint8 [24,36,36,3], and the first and last frame of each cue, counted from 0.
    """
    # A cue covers whole segments: the easy one two of the first four, the hard one three of the last four.
    starts = {"easy": int(rng.integers(0, 3)), "hard": int(rng.integers(4, 6))}
    lengths = {"easy": 2, "hard": 3}
    spans = {cue: (PER_SEGMENT * starts[cue], PER_SEGMENT * (starts[cue] + lengths[cue]) - 1) for cue in CUES}
    background = _background(rng)
    masks = {
        "easy": _easy(rng, digits["easy"]),
        "hard": _hard(rng, digits["hard"], PER_SEGMENT * lengths["hard"]),
    }
    noise = rng.normal(0, 10, (SEGMENTS * PER_SEGMENT, SIZE, SIZE, 3))

    versions = {}
    for version, cues in VERSIONS.items():
        frames = background + noise
        for cue in cues:
            first, last = spans[cue]
            frames[first : last + 1] += masks[cue] * (255 - background)
        versions[version] = frames.clip(0, 255).astype(np.uint8)
    return versions, spans


def _background(rng: np.random.Generator) -> np.ndarray:
    """A dark grey with a faint pattern, [SIZE,SIZE,1] in 0..255."""
    cells = rng.uniform(30, 70) + rng.uniform(-15, 15, (5, 5))
    return _resized(cells, SIZE)[..., None]


def _easy(rng: np.random.Generator, digit: np.ndarray) -> np.ndarray:
    """A large bright digit that stands near the centre: opacities [1,SIZE,SIZE,1] in 0..1."""
    side = int(rng.integers(20, 29))
    corner = (SIZE - side) // 2 + rng.integers(-4, 5, 2)
    return rng.uniform(0.7, 1.0) * _placed(digit, side, corner[None])


def _hard(rng: np.random.Generator, digit: np.ndarray, frames: int) -> np.ndarray:
    """A small faint digit that moves on a straight line: opacities [frames,SIZE,SIZE,1] in 0..1."""
    side = int(rng.integers(18, 21))
    ends = rng.integers(0, SIZE - side + 1, (2, 2))
    return rng.uniform(0.5, 0.7) * _placed(digit, side, np.linspace(*ends, frames).round().astype(int))


def _placed(digit: np.ndarray, side: int, corners: np.ndarray) -> np.ndarray:
    """The digit at each of the upper left ``corners`` (row, column), [N,SIZE,SIZE,1] in 0..1."""
    ink = _resized(digit / 16, side).clip(0, 1)
    frames = np.zeros((len(corners), SIZE, SIZE, 1))
    for frame, (row, column) in zip(frames, corners, strict=True):
        frame[row : row + side, column : column + side, 0] = ink
    return frames


def _resized(picture: np.ndarray, side: int) -> np.ndarray:
    image = Image.fromarray(picture.astype(np.float32))
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC), np.float64)


def planned(
    labels: np.ndarray, per_class: dict[str, int], seed: int
) -> Iterator[tuple[str, int, int, dict[str, int]]]:
    """Split, class, number and the digits of every clip by their places in ``labels``; none serves twice."""
    for label in range(len(CLASSES)):
        left = iter(np.random.default_rng((seed, label)).permutation(np.flatnonzero(labels == label)))
        for split, count in per_class.items():
            for number in range(count):
                yield split, label, number, {cue: int(next(left)) for cue in CUES}


def write(root: Path, images: np.ndarray, labels: np.ndarray, per_class: dict[str, int], seed: int) -> None:
    """Writes the clips and ``cues.csv``.

    The files depend only on the arguments. More validation clips leave the training clips and the other
    validation clips as they are.

    Args:
        images, labels: the digits, [N,8,8] from 0 to 16, and their values, int [N] from 0 to 9.
        per_class: the number of clips of each class in "train" and "val".
    """
    most = int(np.bincount(labels).min()) // len(CUES)
    if sum(per_class.values()) > most:
        raise ValueError(f"there are digits for {most} clips of a class, got {per_class}")
    rows = []
    for split, label, number, chosen in planned(labels, per_class, seed):
        rng = np.random.default_rng((seed, *chosen.values()))
        versions, spans = draw_clip(rng, {cue: images[place] for cue, place in chosen.items()})
        for version in ("both",) if split == "train" else VERSIONS:
            clip = f"{CLASSES[label]}/{number:03d}_{version}"
            (root / split / clip).mkdir(parents=True)
            for frame, picture in enumerate(versions[version], 1):
                Image.fromarray(picture).save(root / split / clip / f"{frame:05d}.jpg", quality=95)
            row = {"split": split, "id": clip, "version": version}
            for cue in CUES:
                row |= {
                    f"{cue}_digit": chosen[cue],
                    f"{cue}_first": spans[cue][0],
                    f"{cue}_last": spans[cue][1],
                }
            rows.append(row)
    write_csv(root / "cues.csv", rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train-per-class", type=int, default=8)
    parser.add_argument("--val-per-class", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        sys.exit("the digits come with scikit-learn: pip install scikit-learn")
    found = load_digits()
    counts = {"train": given.train_per_class, "val": given.val_per_class}
    write(given.folder, found.images, found.target, counts, given.seed)
