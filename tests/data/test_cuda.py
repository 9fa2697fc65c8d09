"""Tests that need a GPU: pinned batches, and decoding on the GPU."""

import pytest
import torch

from taf_fast.data import ClipLoader

SETTINGS = {"num_segments": 8, "size": 48, "batch_size": 6, "train": True}


def test_decoding_on_a_gpu_needs_one(clean):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="decoder mixed needs a GPU that PyTorch can use"):
        ClipLoader(clean, **SETTINGS, decoder="mixed")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["threads", "workers"])
def test_batches_are_pinned(mixed, kind):
    for batch in ClipLoader(mixed, **SETTINGS, pin_memory=True, **{kind: 2}):
        assert batch.clips.is_pinned()


@pytest.mark.gpu
def test_a_gpu_decodes_the_same_frames(mixed, seed, by_id):
    pytest.importorskip("nvidia.dali")
    on_cpu = by_id(ClipLoader(mixed, **SETTINGS, seed=seed))
    on_gpu = by_id(ClipLoader(mixed, **SETTINGS, seed=seed, decoder="mixed"))
    assert on_gpu.keys() == on_cpu.keys()
    for name, clip in on_gpu.items():
        assert clip.is_cuda
        # Its conversion to RGB may interpolate colours otherwise; another frame is tens of levels away.
        assert (clip.cpu().float() - on_cpu[name].float()).abs().mean() < 4
