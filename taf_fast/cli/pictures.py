"""Pictures of what models do."""

from pathlib import Path
from typing import Annotated

import typer

from taf_fast.data import read_dataset, read_manifest, scan

from .app import app
from .options import Data


@app.command()
def attention(
    data: Data,
    checkpoint: Annotated[list[Path], typer.Option(help="Weights of a run; repeat to compare.")],
    out: Annotated[Path, typer.Option(help="PNG file.")],
    clip: Annotated[str | None, typer.Option(help="Id of a validation video. Default: the first.")] = None,
) -> None:
    """Draw the frames of a clip and each model's Grad-CAM of its true class."""
    from taf_fast.report.attention import draw_attention

    names = [path.parent.name or path.stem for path in checkpoint]
    if len(set(names)) < len(names):
        names = [str(path) for path in checkpoint]
    manifest = scan(read_dataset(data, "validation"), known=read_manifest(data))
    draw_attention(out, manifest, clip, dict(zip(names, checkpoint, strict=True)))
    print(f"wrote {out}")
