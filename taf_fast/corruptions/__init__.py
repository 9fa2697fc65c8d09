"""The corruptions of ImageNet-C (Hendrycks and Dietterich, 2019) that the paper's Table 3 tries, on clips."""

import zlib

import torch
from torch import Tensor

from .blur import defocus_blur, gaussian_blur, zoom_blur
from .draws import Draws
from .noise import gaussian_noise, impulse_noise, speckle_noise
from .weather import brightness, snow

# From float64 pixels [B,T,3,H,W] in [0,1] to the same, not yet clipped to [0,1].
_RANDOM = {
    "gaussian_noise": gaussian_noise,
    "impulse_noise": impulse_noise,
    "speckle_noise": speckle_noise,
    "snow": snow,
}
_FIXED = {
    "gaussian_blur": gaussian_blur,
    "defocus_blur": defocus_blur,
    "zoom_blur": zoom_blur,
    "brightness": brightness,
}

# In the order of Table 3.
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
SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(clips: Tensor, name: str, severity: int, seeds: list[int]) -> Tensor:
    """Clips as they would be seen in noise, out of focus or in snow; every frame draws its own.

    What is random depends on the clip's seed, the corruption and the severity, not on the other clips, and on
    the kind of device, as PyTorch's generators do. Computed in float64 and truncated, as ImageNet-C does: the
    rest is equal on all devices.

    Args:
        clips: uint8 [B,T,H,W,3], resized and cropped, of any size.
        name: one of ``NAMES``.
        severity: 1 to 5.
        seeds: an integer for every clip.

    Returns:
        uint8 [B,T,H,W,3] on the device of ``clips``, which stay as they are.

    Raises:
        ValueError: for other clips, names or severities, or another number of seeds.
    """
    if clips.dtype != torch.uint8 or clips.dim() != 5 or clips.shape[-1] != 3:
        raise ValueError(f"expected uint8 clips of shape [B,T,H,W,3], got {clips.dtype} {list(clips.shape)}")
    if name not in NAMES:
        raise ValueError(f"corruption must be one of {', '.join(NAMES)}, got {name!r}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be one of {', '.join(map(str, SEVERITIES))}, got {severity}")
    if len(seeds) != len(clips):
        raise ValueError(f"expected a seed for each of {len(clips)} clips, got {len(seeds)}")
    pixels = clips.movedim(-1, -3).double() / 255
    if name in _FIXED:
        corrupted = _FIXED[name](pixels, severity)
    else:
        own = [zlib.crc32(f"{name} {severity} {seed}".encode()) for seed in seeds]
        corrupted = _RANDOM[name](pixels, severity, Draws(own, clips.device))
    return (255 * corrupted.clamp(0, 1)).to(torch.uint8).movedim(-3, -1).contiguous()
