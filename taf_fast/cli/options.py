"""Options that several commands have, and what becomes of them."""

import dataclasses
from pathlib import Path
from typing import Annotated

import torch
import typer

from taf_fast.run import ranks
from taf_fast.run.config import FinetuneConfig, RunError

Data = Annotated[Path, typer.Option(help="Folder of a data set; docs/data.md says which are read.")]
ClassOrder = Annotated[
    str | None,
    typer.Option(help="Of the checkpoint: alphabetical, or raw, as in Something-Something V1's labels file."),
]
ManifestOption = Annotated[
    Path | None,
    typer.Option(help="File of taf-fast scan. Default: taf_fast_manifest.jsonl in --data, if it is there."),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... Default: cuda if there is one.")]
Trust = Annotated[bool, typer.Option(help="Run the code a torch.save checkpoint may hold.")]
Threads = Annotated[int, typer.Option(help="Threads that decode.")]

Segments = Annotated[int | None, typer.Option(help="Default: the checkpoint's, or 8.")]
Size = Annotated[int | None, typer.Option(help="In pixels. Default: the checkpoint's, or 224.")]

DEFAULT = {field.name: field.default for field in dataclasses.fields(FinetuneConfig)}


def device_of(name: str | None) -> torch.device:
    """The device of that name, if PyTorch can use it; None is a GPU if there is one."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=ranks.own_device(name))
    except (RuntimeError, AssertionError) as error:
        raise RunError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return torch.device(name)


def require_folder(*files: Path | None) -> None:
    """Raise RunError unless every file can be written into a folder that exists: not after hours of work."""
    for path in files:
        if path is not None and not path.parent.is_dir():
            raise RunError(f"{path} cannot be written: there is no folder {path.parent}")
