"""A decoder that crashes, importable by name in other processes."""

import os
import signal

from taf_fast.data.scanning import recording


def look(item):
    """As ``recording._look``, but for a clip called "crash"."""
    if item[1].path.stem == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    return recording._look(item)
