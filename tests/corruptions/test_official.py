"""The corruptions against the output of ImageNet-C's own code for a picture and the same draws.

``imagenet_c/record.py`` recorded it.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from corruptions.imagenet_c.picture import KEPT, SEED, picture

from taf_fast import corruptions

RECORDED = np.load(Path(__file__).parent / "imagenet_c" / "corrupted.npz")
SHAPE = (224, 224, 3)
IMPULSES = (0.03, 0.06, 0.09, 0.17, 0.27)


class OfficialDraws:
    """ImageNet-C's draws from numpy after ``seed(SEED)``, as draws for one clip of one frame."""

    def __init__(self, name: str, severity: int):
        self.name, self.severity = name, severity
        self.random = np.random.RandomState(SEED)

    def normal(self, *shape):
        if self.name == "snow":
            return torch.from_numpy(self.random.normal(size=SHAPE[:2]))[None, None]
        return torch.from_numpy(self.random.normal(size=SHAPE)).movedim(-1, 0)[None, None]

    def uniform(self, *shape):
        if self.name == "snow":
            return torch.tensor([[(self.random.uniform(-135, -45) + 135) / 90]], dtype=torch.float64)
        # scikit-image first draws the positions, then salt or pepper.
        random, amount = np.random.default_rng(SEED), IMPULSES[self.severity - 1]
        hit, salt = random.random(SHAPE) <= amount, random.random(SHAPE) <= 0.5
        drawn = np.where(hit, np.where(salt, 0.75, 0.25) * amount, 1)
        return torch.from_numpy(drawn).movedim(-1, 0)[None, None]


# Share of the values that may be a level off: ImageNet-C's disk and its pictures in zoom blur and snow are
# float32, and it goes through HSV, so that a whole level, as in white, may be truncated to the one below.
OTHER = {"defocus_blur": 0.08, "zoom_blur": 0.01, "snow": 0.01, "brightness": 0.03}


@pytest.mark.parametrize("severity", corruptions.SEVERITIES)
@pytest.mark.parametrize("name", corruptions.NAMES)
def test_equals_imagenet_c(monkeypatch, name, severity):
    monkeypatch.setattr(corruptions, "Draws", lambda seeds, device: OfficialDraws(name, severity))
    clips = torch.from_numpy(picture())[None, None]
    ours = corruptions.corrupt(clips, name, severity, [0])[0, 0].numpy()[np.ix_(KEPT, KEPT)]
    difference = np.abs(ours.astype(int) - RECORDED[f"{name}_{severity}"])
    assert difference.max() <= 1 and (difference > 0).mean() <= OTHER.get(name, 0)
