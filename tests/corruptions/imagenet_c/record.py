"""Records what ImageNet-C's own code makes of a picture, for test_official.py.

    python record.py --imagenet-c robustness/ImageNet-C/imagenet_c/imagenet_c/corruptions.py

with the file of a clone of https://github.com/hendrycks/robustness, in an environment as old as it needs:
Python 3.11, numpy<2, scipy<1.12, scikit-image<0.21, opencv-python-headless<4.11, setuptools<81 and Wand, with
ImageMagick 6 (libmagickwand).
"""

import argparse
import functools
import importlib.util
from pathlib import Path

import numpy as np
from picture import KEPT, SEED, picture
from skimage.filters import gaussian

NAMES = (
    "gaussian_noise",
    "impulse_noise",
    "speckle_noise",
    "gaussian_blur",
    "defocus_blur",
    "zoom_blur",
    "snow",
    "brightness",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--imagenet-c", metavar="FILE", required=True)
    args = parser.parse_args()
    spec = importlib.util.spec_from_file_location("imagenet_c", args.imagenet_c)
    official = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(official)
    # Its name for the axis of the colours was given up.
    official.gaussian = lambda image, sigma, multichannel: gaussian(image, sigma, channel_axis=-1)
    # The only draws that are not numpy's global ones.
    official.sk.util.random_noise = functools.partial(official.sk.util.random_noise, seed=SEED)
    kept = {}
    for name in NAMES:
        for severity in (1, 2, 3, 4, 5):
            np.random.seed(SEED)
            corrupted = np.uint8(getattr(official, name)(picture(), severity))
            kept[f"{name}_{severity}"] = corrupted[np.ix_(KEPT, KEPT)]
    out = Path(__file__).with_name("corrupted.npz")
    np.savez_compressed(out, **kept)
    print(f"{out}: {len(kept)} pictures, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
