"""Trained models as files for other runtimes: ONNX, and programs of ``torch.export``."""

import contextlib
import copy
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taf_fast.data.views.crops import full_size
from taf_fast.errors import CheckpointError, MissingDependency, RunError
from taf_fast.files import require_other, require_writable, write_atomically
from taf_fast.models.contract import normalisation_of, offered
from taf_fast.models.dual_batch_norm import named_duals
from taf_fast.models.tpn import TPN
from taf_fast.parsing import to_json
from taf_fast.run.checkpoint import weights_file
from taf_fast.run.config import FIELDS, FinetuneConfig, hint_of
from taf_fast.run.model import load_model
from taf_fast.run.values import check, declaration

FORMATS = ("onnx", "torch")

# The name of the metadata in a program of torch.export.
METADATA = "taf_fast.json"

# Largest difference of a logit, relative to the largest logit if that is above 1.
_TOLERANCE = 1e-4

# A map of one pixel is a case of its own to torch.export; the models divide sizes by 32.
_SMALLEST_SIDE = 33

# Of one message in protobuf, which an ONNX file is.
_ONNX_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class Exported:
    """A file that :func:`export` wrote.

    ``metadata`` is what the file says of itself. ``difference`` is the largest one between a logit of the
    file and of the model, on random clips; None if it was not measured because onnxruntime is not installed.
    """

    path: Path
    to: str
    metadata: dict[str, Any]
    difference: float | None

    def __str__(self) -> str:
        runtime = "ONNX Runtime" if self.to == "onnx" else "torch.export's program"
        checked = (
            "not checked, as onnxruntime is not installed"
            if self.difference is None
            else f"its logits in {runtime} differ from the model's by at most {self.difference:.1e}"
        )
        return (
            f"wrote {self.path}: {checked}\n"
            f"  input   {self.metadata['input']}\n  output  {self.metadata['output']}"
        )


def export(
    model: nn.Module | str | os.PathLike,
    out: str | os.PathLike,
    to: str,
    *,
    num_segments: int | None = None,
    size: int | None = None,
    trust_checkpoint: bool = False,
) -> Exported:
    """Write a model, in eval mode and float32, as a file that runs without taf_fast.

    The file's input is ``clips``, float32 [batch,T,3,height,width], normalised as the model's are; its output
    is ``logits``, float32 [batch,classes]. The batch may have any size, and so may the frames if the model
    allows. The written file is run on random clips and compared with the model; it only gets its name if the
    logits agree to 1e-4.

    Args:
        model: a checkpoint of any origin that finetune reads, the folder of a run, or a model that takes
            clips [B,T,3,H,W] to logits [B,classes], which is left as it is.
        out: the file to write.
        to: ``"onnx"``, or ``"torch"`` for a program that ``torch.export.load`` reads.
        num_segments, size: None for the model's own, or else 8 frames of 224 pixels. The size is the one that
            the file names; it is binding only if the model takes no other.
        trust_checkpoint: run the code that a ``torch.save`` file may hold.

    Raises:
        MissingDependency: onnx or onnxscript is not installed.
        CheckpointError: the checkpoint cannot be read, or the model has adversarial batch norms.
        RunError: a value is out of range, or the model cannot be exported.
        FileError: the file cannot be written.
    """
    out = Path(out)
    if to not in FORMATS:
        raise RunError(f"unknown format {to!r}, expected one of {', '.join(FORMATS)}")
    for package in ("onnx", "onnxscript") if to == "onnx" else ():
        if find_spec(package) is None:
            raise MissingDependency(f"writing ONNX needs {package}: pip install taf_fast[onnx]")
    for name, value in (("num_segments", num_segments), ("size", size)):
        if value is not None:
            check(name, value, hint_of(name), declaration(FIELDS[name]))
    require_writable(out)
    known: dict[str, Any] = {}
    if not isinstance(model, nn.Module):
        checkpoint = weights_file(Path(model))
        require_other(out, checkpoint)
        model, known = load_model(checkpoint, num_segments, trust_checkpoint)
    if named_duals(model):
        raise CheckpointError("the model has adversarial batch norms: strip_adversarial_bn(model) first")
    own = known.get("num_segments") or offered(model, "num_segments")
    frames = num_segments or own or FinetuneConfig.num_segments
    side = size or known.get("size") or FinetuneConfig.size
    plain = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    if isinstance(plain, TPN):
        del plain.auxiliary  # a quarter of the weights, which only training uses
    with _quiet():
        shapes = [(3, frames, 3, side, side), (1, frames, 3, side + 11, side + 32)]
        program, axes = _program(plain, shapes)
        if len(axes) == 1:
            shapes[1] = (1, frames, 3, side, side)
        metadata = _metadata(plain, known, frames, side, dynamic_size=len(axes) > 1)
        content, run = _onnx(program, axes, metadata) if to == "onnx" else _torch(program, metadata)
        differences: list[float] = []

        def write_and_check(temporary: Path) -> None:
            temporary.write_bytes(content)
            if run is not None:
                differences.append(_difference(plain, run(temporary), shapes))

        write_atomically(out, write_and_check)
    return Exported(out, to, metadata, differences[0] if differences else None)


_Shape = tuple[int, int, int, int, int]


def _program(model: nn.Module, shapes: list[_Shape]) -> tuple[torch.export.ExportedProgram, dict[int, str]]:
    """The model's program, and its input's dimensions of any size by name.

    ``shapes`` are those of clips of the size that is asked for, and of another size.
    """
    clips, other = map(torch.zeros, shapes)
    errors: list[Exception] = []
    for axes in ({0: "batch", 3: "height", 4: "width"}, {0: "batch"}):
        if len(axes) > 1 and not (clips.shape[-1] >= _SMALLEST_SIDE and _takes(model, other)):
            continue
        dims = {
            axis: torch.export.Dim(name, min=_SMALLEST_SIDE if axis else 1) for axis, name in axes.items()
        }
        # Models of all kinds fail in all kinds of ways.
        try:
            program = torch.export.export(model, (clips,), dynamic_shapes=(dims,))
        except Exception as error:
            errors.append(error)
            continue
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # it holds this machine's paths
        return program, axes
    reason = str(errors[-1]).strip().partition("\n")[0]
    raise RunError(f"{type(model).__name__} cannot be exported: {reason}") from errors[-1]


def _takes(model: nn.Module, clips: Tensor) -> bool:
    """Whether the model runs on such clips: torch.export puts off the question until the program runs."""
    try:
        model(clips)
    except Exception:
        return False
    return True


def _metadata(
    model: nn.Module, known: dict[str, Any], frames: int, side: int, dynamic_size: bool
) -> dict[str, Any]:
    sides = "height,width" if dynamic_size else f"{side},{side}"
    normalisation = normalisation_of(model)
    values: dict[str, Any] = {}
    pixels = "RGB pixels in [0,1]"
    if normalisation is not None:
        pixels = "(RGB pixels in [0,1] - mean) / std"
        values = {
            name: [round(float(value), 6) for value in torch.as_tensor(numbers).flatten()]
            for name, numbers in normalisation._asdict().items()
        }
    return {
        "model": known.get("model", type(model).__name__),
        "classes": list(known.get("classes", ())),
        "num_segments": frames,
        "size": side,
        "dynamic_size": dynamic_size,
        **values,
        "input": f"clips: float32 [batch,{frames},3,{sides}], {pixels}",
        "output": "logits: float32 [batch,classes]",
        "frames": f"the middle frames of {frames} equal segments of the video",
        "crop": f"the centre {side} x {side} of frames resized to a short side of {full_size(side)}",
    }


_Run = Callable[[Tensor], Tensor]


def _onnx(
    program: torch.export.ExportedProgram, axes: dict[int, str], metadata: dict[str, Any]
) -> tuple[bytes, Callable[[Path], _Run] | None]:
    """The content of the file, and how to run it; None without onnxruntime."""
    written = torch.onnx.export(
        program,
        input_names=["clips"],
        output_names=["logits"],
        dynamic_shapes=(axes,),
        dynamo=True,
        verbose=False,
    )
    assert written is not None  # it is for a model that is written at once
    proto = written.model_proto
    if proto.ByteSize() > _ONNX_LIMIT:
        raise RunError(f"the model takes {proto.ByteSize()} bytes, an ONNX file holds {_ONNX_LIMIT}")
    proto.producer_name = "taf_fast"
    for name, value in metadata.items():
        text = value if isinstance(value, str) else to_json(value)
        proto.metadata_props.add(key=name, value=text)

    def open_session(path: Path) -> _Run:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda clips: torch.from_numpy(session.run(["logits"], {"clips": clips.numpy()})[0])

    return proto.SerializeToString(), open_session if find_spec("onnxruntime") else None


def _torch(
    program: torch.export.ExportedProgram, metadata: dict[str, Any]
) -> tuple[bytes, Callable[[Path], _Run]]:
    """The content of the file, and how to run it."""
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={METADATA: to_json(metadata)})

    def load(path: Path) -> _Run:
        return torch.export.load(io.BytesIO(path.read_bytes())).module()

    return content.getvalue(), load


def _difference(model: nn.Module, run: _Run, shapes: list[_Shape]) -> float:
    """The largest difference of a logit on random clips. Raise RunError if it is not rounding."""
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for shape in shapes:
        clips = torch.randn(shape, generator=generator)
        expected, found = model(clips), run(clips)
        difference = float((found - expected).abs().max())
        limit = _TOLERANCE * max(1.0, float(expected.abs().max()))
        if not difference <= limit:
            raise RunError(
                f"the exported model's logits differ from the model's by {difference:.1e}, expected at most "
                f"{limit:.1e}"
            )
        largest = max(largest, difference)
    return largest


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' notes about themselves and about packages that are not needed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
