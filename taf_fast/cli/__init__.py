"""The command ``taf-fast``: one module per group of commands.

Commands import video decoders, plotting and training when they run, so that the help does not wait for them.
"""

# In the order of the help.
# isort: off
from taf_fast.cli import train, sweep, data, score, predict, robustness, pictures, report, checkpoints, bench  # noqa: F401

# isort: on
from taf_fast.cli.app import app, main

__all__ = ["app", "main"]
