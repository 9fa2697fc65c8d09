"""The command, the data, the versions and the machine of a run."""

import datetime
import platform
import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

import torch

import taf_fast

_PACKAGES = ("torch", "triton", "numpy", "av", "nvidia-dali-cuda130", "nvidia-dali-cuda120")


def environment(device: torch.device, data: Mapping[str, str], earlier: Mapping[str, str]) -> dict[str, str]:
    """What a run is computed by, by name, without the packages that are not installed.

    Args:
        data: what the run is computed from, by name.
        earlier: the same of the process that began the run, if this one goes on; of it stay the command line
            and the date.
    """
    command, now = shlex.join(sys.orig_argv), datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    begun = {name: earlier[name] for name in ("command line", "date") if name in earlier}
    resumed = {"resumed by": command, "resumed at": now} if begun else {}
    found = {"command line": command, "date": now} | begun | resumed | dict(data)
    found |= {"taf_fast": taf_fast.__version__, "Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    found["system"] = platform.platform()
    if device.type == "cuda":
        found["GPU"] = torch.cuda.get_device_name(device)
        found["CUDA"] = str(torch.version.cuda)
    else:
        found["CPU"] = f"{platform.machine()}, {torch.get_num_threads()} threads"
    return found
