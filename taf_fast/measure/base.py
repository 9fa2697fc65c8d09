"""What the measures of a trained model have in common: rows in a CSV, and what they come to."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from taf_fast.data import ClipLoader
from taf_fast.errors import RunError
from taf_fast.files import read_csv, write_csv

Rows = list[dict]


@dataclasses.dataclass(frozen=True)
class Measure:
    """A measure of a trained model on the validation videos.

    Args:
        name: of the measure, and of its CSV in the folder of a run.
        columns: those of its rows that are numbers and that ``numbers`` needs; all others are text when read.
        rows: measures a model on the clips of a loader, all ranks together.
        numbers: the means of the rows of one checkpoint, by their names in the tables of a sweep.
    """

    name: str
    columns: tuple[str, ...]
    rows: Callable[[nn.Module, ClipLoader, torch.device], Rows]
    numbers: Callable[[Rows], dict[str, float]]

    def write(self, path: Path, rows: dict[str, Rows]) -> None:
        """Write a CSV of the rows by checkpoint, whose column comes first."""
        write_csv(path, [{"checkpoint": name} | row for name, found in rows.items() for row in found])

    def read(self, path: Path) -> dict[str, Rows]:
        """Read the rows of a CSV by checkpoint; RunError, naming the file, if ``numbers`` fails on them."""
        try:
            found: dict[str, Rows] = {}
            for row in read_csv(path):
                numbers = {name: float(row[name]) for name in self.columns}
                found.setdefault(row["checkpoint"], []).append(row | numbers)
            for rows in found.values():
                self.numbers(rows)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path} is damaged: {error!r}") from None
        return found
