"""Libraries that the tests import in their own way."""

import importlib.util
import sys
from enum import Enum
from types import ModuleType

import pytest


class _StandIn(ModuleType):
    __path__: list[str] = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "InterpolationMode":
            return Enum(name, "NEAREST BILINEAR BICUBIC BOX HAMMING LANCZOS")
        return sys.modules.get(f"{self.__name__}.{name}") or type(name, (), {})


def import_timm():
    """timm, or skip the test where it is not installed.

    timm imports torchvision, which is not installed with it: one for another build of torch breaks every
    library that looks for it. No model that is trained here uses torchvision, so classes without content take
    its place during the import.
    """
    stand_ins = {}
    if "timm" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        names = ["", ".datasets", ".models", ".ops", ".ops.misc", ".transforms", ".transforms.functional"]
        stand_ins = {f"torchvision{name}": _StandIn(f"torchvision{name}") for name in names}
    sys.modules |= stand_ins
    try:
        return pytest.importorskip("timm")
    finally:
        for name in stand_ins:
            del sys.modules[name]
