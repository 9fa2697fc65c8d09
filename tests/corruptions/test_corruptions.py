"""The corruptions against float64 references on pictures of all sizes, and the source of their draws."""

import math

import numpy as np
import pytest
import torch
from reference import corruptions as reference

from taf_fast import corruptions
from taf_fast.corruptions import NAMES, SEVERITIES, corrupt
from taf_fast.corruptions.draws import Draws

RANDOM = ("gaussian_noise", "impulse_noise", "speckle_noise", "snow")
FIXED = tuple(name for name in NAMES if name not in RANDOM)
# Height and width: odd, wider, higher, smaller than any kernel, a pixel.
SIZES = [(33, 47), (40, 26), (7, 12), (1, 1)]


@pytest.fixture
def numpy_generator(seed):
    return np.random.default_rng(seed)


def random_clips(generator, batch, frames, height, width):
    """Grainy pictures with fields of white, black and one colour, where rounding decides."""
    clips = generator.integers(0, 256, (batch, frames, height, width, 3), dtype=np.uint8)
    clips[:, :, : height // 4] = 255
    clips[:, :, height // 2 : 3 * height // 4, : width // 2] = 0
    clips[:, :, :, 3 * width // 4 :] = generator.integers(0, 256, 3)
    return torch.from_numpy(clips)


class Recorded(Draws):
    """Return the draws in the reference's order of axes."""

    def __init__(self, seeds, device):
        super().__init__(seeds, device)
        self.drawn = []
        type(self).last = self

    def _keep(self, values):
        self.drawn.append((values.movedim(2, -1) if values.dim() == 5 else values).numpy())
        return values

    def normal(self, *shape):
        return self._keep(super().normal(*shape))

    def uniform(self, *shape):
        return self._keep(super().uniform(*shape))


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference(monkeypatch, numpy_generator, name, severity):
    monkeypatch.setattr(corruptions, "Draws", Recorded)
    for size in SIZES:
        clips = random_clips(numpy_generator, 2, 2, *size)
        before = clips.clone()
        result = corrupt(clips, name, severity, numpy_generator.integers(2**32, size=2).tolist())
        drawn = Recorded.last.drawn if name in RANDOM else []
        assert result.dtype == torch.uint8 and result.is_contiguous() and torch.equal(clips, before)
        for i, clip in enumerate(clips.numpy()):
            expected = getattr(reference, name)(clip, severity, *(values[i] for values in drawn))
            # A value that is a whole level up to rounding may be truncated to the level below.
            least, most = (np.floor(expected + slack).clip(0) for slack in (-1e-6, 1e-6))
            got = result[i].numpy()
            assert got.shape == expected.shape and ((least <= got) & (got <= most)).all(), size
    assert name in FIXED or len(drawn) == (2 if name == "snow" else 1)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", ["gaussian_blur", "zoom_blur"])
def test_what_has_one_colour_keeps_it(name, severity):
    clips = torch.arange(256, dtype=torch.uint8).view(2, 128, 1, 1, 1).expand(-1, -1, 9, 14, 3)
    assert torch.equal(corrupt(clips, name, severity, [0, 0]), clips)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", NAMES)
def test_a_clip_is_alone_in_its_batch(seed, numpy_generator, name, severity):
    clips = random_clips(numpy_generator, 3, 2, 20, 16)
    seeds = [seed, seed + 1, seed + 2]
    together = corrupt(clips, name, severity, seeds)
    for i in (2, 0, 1):
        assert torch.equal(corrupt(clips[i : i + 1], name, severity, seeds[i : i + 1])[0], together[i])


@pytest.mark.parametrize("name", RANDOM)
def test_clips_frames_severities_and_corruptions_draw_their_own(monkeypatch, seed, name):
    monkeypatch.setattr(corruptions, "Draws", Recorded)
    grey = torch.full((2, 2, 16, 16, 3), 128, dtype=torch.uint8)

    def drawn(name, severity):
        corrupt(grey, name, severity, [seed, seed + 1])
        return [frame for clip in Recorded.last.drawn[0] for frame in clip]

    others = [frame for severity in SEVERITIES for frame in drawn(name, severity)]
    others += drawn("speckle_noise" if name == "gaussian_noise" else "gaussian_noise", 1)
    assert len({frame.tobytes() for frame in others}) == 2 * 2 * 6
    torch.manual_seed(0)
    state = torch.get_rng_state()
    again = drawn(name, 1)
    assert all(np.array_equal(*pair) for pair in zip(again, others[:4], strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_draws_have_their_distributions(seed):
    """By the inequality of Dvoretzky, Kiefer and Wolfowitz this fails once in 1e12 runs."""
    draws, n = Draws([seed, seed + 1], torch.device("cpu")), 50_000
    bound = math.sqrt(math.log(2e12) / (2 * n))
    for values, distribution in (
        (draws.normal(n), torch.special.ndtr),
        (draws.uniform(n), lambda x: x.clamp(0, 1)),
    ):
        for clip in values.sort().values:
            steps = torch.arange(n, dtype=torch.float64) / n
            assert (distribution(clip) - steps).abs().max() < bound + 1 / n


@pytest.mark.parametrize("severity", SEVERITIES)
def test_impulse_noise_is_of_values(seed, severity):
    """Every channel on its own; counts within 7 standard deviations."""
    grey = torch.full((1, 4, 100, 100, 3), 77, dtype=torch.uint8)
    noisy = corrupt(grey, "impulse_noise", severity, [seed])
    amount = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    assert set(noisy.unique().tolist()) == {0, 77, 255}
    hit = noisy != 77
    for share, p in (
        ((noisy == 0).double(), amount / 2),
        ((noisy == 255).double(), amount / 2),
        ((hit[..., 0] & hit[..., 1]).double(), amount**2),
    ):
        assert abs(share.mean().item() - p) < 7 * math.sqrt(p * (1 - p) / share.numel())


CLIPS = torch.zeros(2, 1, 8, 8, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((CLIPS.float(), "snow", 1, [0, 0]), r"uint8 clips of shape \[B,T,H,W,3\], got torch.float32"),
        ((CLIPS[0], "snow", 1, [0]), r"got torch.uint8 \[1, 8, 8, 3\]"),
        ((CLIPS.movedim(-1, 2), "snow", 1, [0, 0]), r"\[2, 1, 3, 8, 8\]"),
        ((CLIPS, "fog", 1, [0, 0]), "corruption must be one of gaussian_noise, .*, got 'fog'"),
        ((CLIPS, "snow", 0, [0, 0]), "severity must be one of 1, 2, 3, 4, 5, got 0"),
        ((CLIPS, "snow", 6, [0, 0]), "got 6"),
        ((CLIPS, "snow", 1.5, [0, 0]), "got 1.5"),
        ((CLIPS, "brightness", 1, [0]), "a seed for each of 2 clips, got 1"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        corrupt(*arguments)
