"""The command ``taf-fast``: a file for every group of commands."""

# In the order of the help.
# isort: off
from . import train, sweep, data, score, robustness, pictures, report, checkpoints, bench  # noqa: F401

# isort: on
from .app import app, main

__all__ = ["app", "main"]
