"""What a run was computed with."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

import taf_fast

_PACKAGES = ("torch", "triton", "numpy", "av", "nvidia-dali-cuda130", "nvidia-dali-cuda120")


def environment(device: torch.device) -> dict[str, str]:
    """Versions and the machine, by what they are versions of; packages that are not installed are missing."""
    found = {"taf_fast": taf_fast.__version__, "Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    found["system"] = platform.platform()
    if device.type == "cuda":
        found["GPU"] = torch.cuda.get_device_name(device)
        found["CUDA"] = torch.version.cuda
    else:
        found["CPU"] = f"{platform.machine()}, {torch.get_num_threads()} threads"
    return found
