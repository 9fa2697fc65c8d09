"""The corruptions of ImageNet-C (Hendrycks and Dietterich, 2019) in the paper's Table 3, for clips."""

import zlib

import torch
from torch import Tensor

from taf_fast.corruptions.blur import defocus_blur, gaussian_blur, zoom_blur
from taf_fast.corruptions.draws import Draws
from taf_fast.corruptions.noise import gaussian_noise, impulse_noise, speckle_noise
from taf_fast.corruptions.weather import brightness, snow

# Each maps float64 pixels [B,T,3,H,W] in [0,1] to the same shape, not yet clipped to [0,1].
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
    """Corrupt clips with noise, blur, snow or brightness; every frame draws its own random numbers.

    The random numbers depend on the seed of the clip, the corruption, the severity and the type of device
    (PyTorch's generators differ between CPU and GPU), but not on the other clips. As in ImageNet-C, the
    result is computed in float64 and truncated. Corruptions without random numbers are equal on all devices.

    Args:
        clips: uint8 [B,T,H,W,3], resized and cropped, of any size.
        name: one of ``NAMES``.
        severity: 1 to 5.
        seeds: one integer per clip.

    Returns:
        the corrupted clips, uint8 [B,T,H,W,3] on the device of ``clips``, which are not modified.

    Raises:
        ValueError: clips of another shape or dtype, an unknown name or severity, or a wrong number of seeds.
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
