"""The command ``taf-fast``: a file for every group of commands."""

# In the order of the help.
# isort: off
from . import train, data, score, pictures, checkpoints, bench  # noqa: F401

# isort: on
from .app import app, main

__all__ = ["app", "main"]
