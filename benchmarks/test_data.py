"""Clips per second: ClipLoader against a PyTorch DataLoader over PyAV, equal plans and numbers of threads."""

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import VideoReformatter

from taf_fast.data import ClipLoader, read_ssv2, scan
from taf_fast.data.planner import plan
from taf_fast.data.synth import write_ssv2

NUM_SEGMENTS, SIZE, BATCH_SIZE, THREADS = 8, 112, 16, 2
# The frame size of Something-Something-V2 and a small one.
FRAME_SIZES = {"427x240": (427, 240), "96x72": (96, 72)}


class PyAVClips(torch.utils.data.Dataset):
    """The clips a training loader delivers in epoch 0, decoded by PyAV and resized by PyTorch."""

    def __init__(self, manifest):
        self.manifest = manifest

    def __len__(self) -> int:
        return len(self.manifest.clips)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        clip = self.manifest.clips[position]
        plans = plan(clip, position, NUM_SEGMENTS, SIZE, seed=0, epoch=0, train=True)
        wanted = set(plans.frames.tolist())
        reformatter, frames = VideoReformatter(), {}
        with av.open(str(clip.path)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for index, frame in enumerate(container.decode(video=0)):
                if index in wanted:
                    frames[index] = reformatter.reformat(frame, format="rgb24").to_ndarray()
                if index == plans.frames[-1]:
                    break
        video = np.stack([frames[index] for index in plans.frames.tolist()])
        crop = video[:, plans.y : plans.y + plans.height, plans.x : plans.x + plans.width]
        pixels = torch.nn.functional.interpolate(
            torch.from_numpy(crop).permute(0, 3, 1, 2), (SIZE, SIZE), mode="bilinear", antialias=True
        )
        return pixels.permute(0, 2, 3, 1), clip.label


@pytest.fixture(scope="module", params=FRAME_SIZES)
def manifest(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("ssv2") / request.param
    write_ssv2(root, train_per_class=16, val_per_class=0, size=FRAME_SIZES[request.param], frames=(36, 48))
    return scan(read_ssv2(root, "train"))


def run_epoch(benchmark, loader, clips_of, total: int) -> None:
    def epoch() -> None:
        assert sum(len(clips_of(batch)) for batch in loader) == total

    benchmark.pedantic(epoch, rounds=5, warmup_rounds=1)
    benchmark.extra_info["clips_per_second"] = total / benchmark.stats.stats.median


def test_clip_loader(benchmark, manifest):
    benchmark.group = f"{manifest.clips[0].width}x{manifest.clips[0].height} to {SIZE}, {THREADS} threads"
    loader = ClipLoader(manifest, NUM_SEGMENTS, SIZE, BATCH_SIZE, train=True, threads=THREADS)
    run_epoch(benchmark, loader, lambda batch: batch.clips, len(manifest.clips))


def test_pytorch_dataloader_with_pyav(benchmark, manifest):
    benchmark.group = f"{manifest.clips[0].width}x{manifest.clips[0].height} to {SIZE}, {THREADS} threads"
    loader = torch.utils.data.DataLoader(
        PyAVClips(manifest), BATCH_SIZE, shuffle=True, num_workers=THREADS, persistent_workers=True
    )
    run_epoch(benchmark, loader, lambda batch: batch[0], len(manifest.clips))
