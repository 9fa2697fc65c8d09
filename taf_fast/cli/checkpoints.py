"""Checkpoints of other code."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from taf_fast import models
from taf_fast.data import raw_ssv1_classes
from taf_fast.files import write_atomically
from taf_fast.run.checkpoint import read_info

from .app import app
from .options import Trust


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Weights of any origin that finetune reads.")],
    out: Annotated[Path, typer.Argument(help="File to write, for torch.load.")],
    to: Annotated[str, typer.Option(help="Whose code is to load it: official, or mmaction2 (TSM, TPN).")],
    read_raw: Annotated[
        Path | None,
        typer.Option(help="Something-Something V1 folder, if CHECKPOINT has the class order of its labels."),
    ] = None,
    write_raw: Annotated[
        Path | None, typer.Option(help="Likewise, if OUT is to have that order (MMAction2's does).")
    ] = None,
    trust_checkpoint: Trust = False,
) -> None:
    """Write a checkpoint for the code a model came from: fine-tuned here, used there."""
    info = read_info(checkpoint)
    found = models.inspect(checkpoint, trust_checkpoint)
    options = found.options if info is None else info.options
    model = models.build(found.model, found.num_classes, **options)
    raw = None if read_raw is None else raw_ssv1_classes(read_raw)
    print(models.load(model, checkpoint, trust=trust_checkpoint, raw_classes=raw))
    raw = None if write_raw is None else raw_ssv1_classes(write_raw)
    content = models.export(model, to, raw_classes=raw)
    write_atomically(out, lambda temporary: torch.save(content, temporary))
    print(f"wrote {out}: {len(content['state_dict'])} tensors for {to} {model.family}")
