"""Clips per second: ClipLoader and PyTorch DataLoaders over PyAV and PIL with the same number of workers.

    pytest benchmarks/test_data.py --benchmark-json=run.json && python benchmarks/report.py run.json

The files are synthetic, in the formats and frame sizes of Something-Something V2 (VP9 WebM),
Something-Something V1 (JPEG frames) and Diving48 (H.264). Epochs of small files repeat them, so that the
start of an epoch, when nothing is decoded yet, weighs no more than in a real one. All loaders deliver the
same training views of 8 frames of 224 x 224 pixels and are timed in turn. Timings never decide a test. The
environment variable REPEATS sets the number of timed epochs, WORKERS that of worker processes or threads.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from PIL import Image

from taf_fast.bench.measure import interleaved_seconds, percentiles
from taf_fast.data import DECODERS, ClipLoader, Manifest, read_dataset, scan
from taf_fast.data.cache.write import write_cache
from taf_fast.data.decoding.pyav import CONVERSION
from taf_fast.data.synth import write
from taf_fast.data.views.planner import ClipPlan, plan

NUM_SEGMENTS, SIZE, BATCH_SIZE = 8, 224, 8
WORKERS = int(os.environ.get("WORKERS", 2))
REPEATS = int(os.environ.get("REPEATS", 5))
PER_CLASS = {"ssv2": 8, "ssv1": 16, "diving48": 2}  # training clips per class
TIMES = {"ssv2": 1, "ssv1": 8, "diving48": 1}  # how often each clip is in an epoch
CACHED_CLIPS = 512  # in an epoch of the cache, about


class Clips(torch.utils.data.Dataset):
    """The clips that a training loader delivers in its first epoch."""

    def __init__(self, manifest: Manifest, decode: Callable[[Path, ClipPlan], np.ndarray]):
        self.manifest = manifest
        self.decode = decode

    def __len__(self) -> int:
        return len(self.manifest.clips)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        clip = self.manifest.clips[position]
        wanted = plan(clip, position, NUM_SEGMENTS, SIZE, seed=0, epoch=0, train=True)
        return torch.from_numpy(self.decode(clip.path, wanted)), clip.label


def whole_video(path: Path, wanted: ClipPlan) -> np.ndarray:
    """Decode as MMAction2 and others do: convert all frames up to the last to RGB, resize the wanted with
    PIL."""
    frames = []
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for frame in container.decode(video=0):
            frames.append(frame.to_rgb().to_ndarray())
            if len(frames) > wanted.frames[-1]:
                break
    return np.stack([resize_by_pil(Image.fromarray(frames[index]), wanted) for index in wanted.frames])


def wanted_frames(path: Path, wanted: ClipPlan) -> np.ndarray:
    """Convert only the wanted frames to RGB, as exactly as this package does; PyTorch resizes all at once."""
    frames, reformatter = {}, VideoReformatter()
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for index, frame in enumerate(container.decode(video=0)):
            if index in wanted.frames:
                frames[index] = reformatter.reformat(frame, **CONVERSION).to_ndarray()
            if index == wanted.frames[-1]:
                break
    video = np.stack([frames[index] for index in wanted.frames.tolist()])
    y, x, height, width = wanted.box
    return resize_by_pytorch(video[:, y : y + height, x : x + width])


def pictures(path: Path, wanted: ClipPlan) -> np.ndarray:
    """Load frames as TSM's official code does: PIL crops and resizes each."""
    return np.stack([resize_by_pil(picture, wanted) for picture in opened(path, wanted)])


def pictures_at_once(path: Path, wanted: ClipPlan) -> np.ndarray:
    """Load frames so that PyTorch resizes all of them at once."""
    return resize_by_pytorch(np.stack([crop(picture, wanted) for picture in opened(path, wanted)]))


def opened(folder: Path, wanted: ClipPlan) -> list[Image.Image]:
    return [Image.open(folder / f"{index + 1:05d}.jpg").convert("RGB") for index in wanted.frames]


def crop(picture: Image.Image, wanted: ClipPlan) -> Image.Image:
    y, x, height, width = wanted.box
    return picture.crop((x, y, x + width, y + height))


def resize_by_pil(picture: Image.Image, wanted: ClipPlan) -> np.ndarray:
    return np.asarray(crop(picture, wanted).resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def resize_by_pytorch(frames: np.ndarray) -> np.ndarray:
    pixels = torch.nn.functional.interpolate(
        torch.from_numpy(frames).permute(0, 3, 1, 2), (SIZE, SIZE), mode="bilinear", antialias=True
    )
    return pixels.permute(0, 2, 3, 1).numpy()


def data_loader(manifest: Manifest, decode: Callable[[Path, ClipPlan], np.ndarray]):
    return torch.utils.data.DataLoader(
        Clips(manifest, decode), BATCH_SIZE, shuffle=True, num_workers=WORKERS, persistent_workers=True
    )


def clip_loader(manifest: Manifest, decoder: str, kind: str = "workers") -> ClipLoader:
    """``kind`` is "workers" or "threads"."""
    return ClipLoader(
        manifest, NUM_SEGMENTS, SIZE, BATCH_SIZE, train=True, decoder=decoder, **{kind: WORKERS}
    )


def loaders(manifest: Manifest, cache: Manifest) -> dict[str, Iterable]:
    if manifest.clips[0].codec == "jpeg":
        decoders = [pictures, pictures_at_once]
    else:
        decoders = [whole_video, wanted_frames]
    peers = {f"DataLoader, {decode.__name__}": data_loader(manifest, decode) for decode in decoders}
    decoders = DECODERS if torch.cuda.is_available() else ("pyav", "dali")
    ours = {f"ClipLoader, {decoder}": clip_loader(manifest, decoder) for decoder in decoders}
    ours["ClipLoader, pyav in threads"] = clip_loader(manifest, "pyav", "threads")
    ours["ClipLoader, cache"] = clip_loader(cache, "pyav")
    ours["ClipLoader, cache in threads"] = clip_loader(cache, "pyav", "threads")
    return peers | ours


def repeated(manifest: Manifest, times: int) -> Manifest:
    """Each clip ``times`` times, under ids of their own."""
    clips = (replace(clip, id=f"{clip.id} {number}") for number in range(times) for clip in manifest.clips)
    return replace(manifest, clips=tuple(clips))


def run(loader: Iterable) -> None:
    for _ in loader:
        pass


def test_clips_per_second(benchmark, tmp_path, video_format):
    format, size, frames = video_format
    write(tmp_path / format, PER_CLASS[format], 0, size, frames, format=format)
    dataset = read_dataset(tmp_path / format, "train")
    manifest = scan(dataset)
    assert not manifest.defects
    for _ in write_cache(tmp_path / "cache", [(dataset, manifest.clips)], WORKERS):
        pass
    cache = scan(read_dataset(tmp_path / "cache", "train"))
    cache = repeated(cache, CACHED_CLIPS // len(cache.clips))
    manifest = repeated(manifest, TIMES[format])
    benchmark.group = f"{format}, {size[0]} x {size[1]} to {SIZE} x {SIZE}, {WORKERS} workers"

    def measure() -> dict[str, list[float]]:
        calls = {name: partial(run, loader) for name, loader in loaders(manifest, cache).items()}
        return interleaved_seconds(calls, REPEATS, torch.device("cpu"))

    times = benchmark.pedantic(measure, rounds=1)
    clips = {name: len((cache if "cache" in name else manifest).clips) for name in times}
    rates = {name: clips[name] / median(values) for name, values in times.items()}
    first, second = list(rates)[:2]
    benchmark.extra_info["loaders"] = [
        {
            "loader": name,
            "seconds": percentiles(times[name]),
            "clips_per_second": rate,
            "against_first": rate / rates[first],
            "against_second": rate / rates[second],
        }
        for name, rate in rates.items()
    ]
