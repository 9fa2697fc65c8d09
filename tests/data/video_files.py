"""Files to decode: small videos in any codec, and what is in them by PyAV and PIL alone."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from taf_fast.data.synth import draw_clip

# Bilinear with full chroma interpolation and accurate rounding: what DALI does.
EXACT = 0x42002


def encode(
    path: Path,
    codec: str,
    frames: int,
    container: str = "webm",
    size: tuple[int, int] = (96, 72),
    rotation: int | None = None,
    pixels: str = "yuv420p",
    mirror: bool = False,
    times: Sequence[int] | None = None,
) -> None:
    """A video of one clip; players are to turn it by ``rotation`` (counter-clockwise) and to mirror it, and
    to show frame i at ``times[i]`` milliseconds instead of 12 a second."""
    images, _ = draw_clip("Moving [something] from left to right", np.random.default_rng(0), frames, *size)
    # The index in front, so that a cut mp4 can still be opened.
    options = {"movflags": "faststart"} if container == "mp4" else {}
    with av.open(str(path), "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=12 if times is None else 1000)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else pixels
        if rotation is not None:
            stream.set_display_rotation(rotation, hflip=mirror)
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())


def decode(path: Path) -> np.ndarray:
    """All frames of a file or folder, RGB uint8 [F, H, W, 3], as stored (not turned)."""
    if path.is_dir():
        return np.stack([np.asarray(Image.open(file)) for file in sorted(path.iterdir())])
    reformatter = VideoReformatter()
    with av.open(str(path)) as container:
        return np.stack(
            [
                reformatter.reformat(frame, format="rgb24", interpolation=EXACT).to_ndarray()
                for frame in container.decode(video=0)
            ]
        )
