"""Checkpoints for other code."""

import io
from pathlib import Path
from typing import Annotated

import torch
import typer

from taf_fast import models
from taf_fast.cli.app import app
from taf_fast.cli.options import Trust, find_weights, option, require_writable
from taf_fast.files import require_other, write_atomically
from taf_fast.plain import say
from taf_fast.run.checkpoint import read_info, require_whole


@app.command()
def convert(
    checkpoint: Annotated[
        Path, typer.Argument(help="Weights of any origin that finetune reads.", callback=find_weights)
    ],
    out: Annotated[Path, typer.Argument(help="File to write, for torch.load.")],
    to: Annotated[
        str, typer.Option(help="Code that is to load it: official, or mmaction2 (TSM and TPN only).")
    ],
    read_raw: Annotated[
        Path | None,
        typer.Option(
            help="Folder of Something-Something V1, if CHECKPOINT has the class order of its labels file."
        ),
    ] = None,
    write_raw: Annotated[
        Path | None,
        typer.Option(help="The same folder, if OUT is to have that order, as MMAction2's checkpoints do."),
    ] = None,
    trust_checkpoint: Trust = False,
) -> None:
    """Write a fine-tuned checkpoint in the format of the code that the model came from."""
    from taf_fast.data import raw_ssv1_classes

    require_writable(out)
    require_other(out, checkpoint)
    info = read_info(checkpoint)
    if info is not None:
        require_whole(checkpoint)
    found = models.inspect(checkpoint, trust_checkpoint)
    options = found.options if info is None else info.options
    model = models.build(found.model, found.num_classes, **options)
    raw = None if read_raw is None else raw_ssv1_classes(read_raw)
    say(models.load(model, checkpoint, trust=trust_checkpoint, raw_classes=raw))
    raw = None if write_raw is None else raw_ssv1_classes(write_raw)
    content = models.export(model, to, raw_classes=raw)
    file = io.BytesIO()  # errors of writing to a disk would not be those of the system
    torch.save(content, file)
    write_atomically(out, lambda temporary: temporary.write_bytes(file.getbuffer()))
    say(f"wrote {out}: {len(content['state_dict'])} tensors for {to} {model.family}")


@app.command()
def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="Weights of any origin that finetune reads.", callback=find_weights)
    ],
    out: Annotated[Path, typer.Argument(help="File to write, such as model.onnx or model.pt2.")],
    to: Annotated[str, typer.Option(help="onnx, or torch: a program for torch.export.load.")],
    num_segments: Annotated[int | None, option("num_segments", default="the checkpoint's, or 8")] = None,
    size: Annotated[int | None, option("size", default="the checkpoint's, or 224")] = None,
    trust_checkpoint: Trust = False,
) -> None:
    """Write a checkpoint's model as a file that runs without taf_fast, and check the file."""
    from taf_fast.run.export import export

    say(export(checkpoint, out, to, num_segments=num_segments, size=size, trust_checkpoint=trust_checkpoint))
