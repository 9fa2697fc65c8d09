"""Options that several commands share, made from the declarations of a run's values."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer

from taf_fast import files
from taf_fast.errors import RunError
from taf_fast.process import ranks
from taf_fast.run.checkpoint import weights_file
from taf_fast.run.config import FIELDS, MACHINE, MODEL, hint_of
from taf_fast.run.values import AUTO, check, declaration, default_text, kinds, number

if TYPE_CHECKING:
    from taf_fast.run.trained import Trained


def _data(path: Path) -> Path:
    files.require_data_folder(path)
    return path


def find_weights(given: Path | list[Path]) -> Path | list[Path]:
    """The callback of options that are checkpoints: the folder of a run stands for its final weights."""
    return [weights_file(path) for path in given] if isinstance(given, list) else weights_file(given)


# What is looked for on the disk before anything else is done, by the name of the value.
_FOUND = {"data": _data, "checkpoint": find_weights}


def option(name: str, *, help: str | None = None, default: str | None = None) -> Any:
    """The typer option of a value of :class:`taf_fast.run.config.FinetuneConfig`, as it is declared there.

    What is given is checked at once; of an option that is repeatable in a command alone, each value is.

    Args:
        help: a command's own words for it.
        default: a command's own default in words; "" for none.
    """
    declared = declaration(FIELDS[name])
    shown = default_text(FIELDS[name]) if default is None else default
    words = declared.help if help is None else help
    is_number = float in kinds(hint_of(name))
    flag = f"--{name.replace('_', '-')}"
    switch = f"{flag}/--no-{flag[2:]}" if bool in kinds(hint_of(name)) else flag

    def checked(value: Any) -> Any:
        if isinstance(value, list) and tuple not in kinds(hint_of(name)):
            for item in value:
                check(name, item, hint_of(name), declared)
        elif value is not None:
            check(name, tuple(value) if isinstance(value, list) else value, hint_of(name), declared)
            return _FOUND.get(name, lambda value: value)(value)
        return value

    return typer.Option(
        declared.option or switch,
        callback=checked,
        is_eager=name == "data",
        help=f"{words} Default: {shown}." if shown else words,
        rich_help_panel=declared.panel,
        show_default=False,
        parser=number_option if is_number else None,
        metavar="<number>" if is_number else None,
    )


def number_option(text: str | float) -> float:
    """The parser of options that are numbers, and of their defaults: :func:`taf_fast.run.values.number`."""
    try:
        return number(str(text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


Data = Annotated[Path, option("data", default="")]
ClassOrder = Annotated[str | None, option("class_order")]
ManifestOption = Annotated[Path | None, option("manifest")]
Device = Annotated[str | None, option("device")]
Compile = Annotated[bool | None, option("compile")]
Workers = Annotated[int | None, option("workers")]
Threads = Annotated[int | None, option("threads")]
QuarantineLimit = Annotated[float, option("quarantine_limit")]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust-checkpoint",
        help="Run the code that a torch.save checkpoint may hold.",
        rich_help_panel=MODEL,
    ),
]


def collect(
    into: str, parameters: Iterable[inspect.Parameter], make: Callable[[dict[str, Any]], Any]
) -> Callable[[Callable], Callable]:
    """Decorate a command: its parameter ``into`` becomes the options ``parameters`` on the command line, and
    the command gets ``make`` of their values, a dictionary by name."""
    parameters = list(parameters)

    def decorate(command: Callable) -> Callable:
        @functools.wraps(command)
        def collecting(**values: Any) -> Any:
            collected = make({parameter.name: values.pop(parameter.name) for parameter in parameters})
            return command(**values, **{into: collected})

        signature: list[inspect.Parameter] = []
        for parameter in inspect.signature(command).parameters.values():
            signature += parameters if parameter.name == into else [parameter]
        keyword_only = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in signature]
        collecting.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
        collecting.__annotations__ = {parameter.name: parameter.annotation for parameter in keyword_only}
        return collecting

    return decorate


def with_run_values(
    into: str, names: Collection[str], required: Collection[str] = (), **own: Any
) -> Callable[[Callable], Callable]:
    """Decorate a command: its parameter ``into`` is a dictionary of those values of FinetuneConfig that were
    given on the command line.

    Args:
        names: the values that are options of the command.
        required: those of them that the command line must give.
        own: the command's own :func:`option` of some of them.
    """
    parameters = [
        _parameter(name, own.get(name) or option(name), name in required) for name in FIELDS if name in names
    ]
    return collect(into, parameters, _given)


def _parameter(name: str, option: Any, required: bool) -> inspect.Parameter:
    """An option without a default of its own, which leaves the default to the recipe and FinetuneConfig."""
    (kind,) = (kind for kind in kinds(hint_of(name)) if kind is not NoneType)
    hint = list[int] if kind is tuple else kind
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if required else None,
        annotation=Annotated[hint if required else hint | None, option],
    )


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
        if value not in (None, [])
    }


@dataclasses.dataclass(frozen=True)
class TrainedOptions:
    """The options of every command that tries trained models on the validation videos."""

    data: Data
    num_segments: Annotated[int | None, option("num_segments", default="the checkpoint's, or 8")] = None
    size: Annotated[int | None, option("size", default="the checkpoint's, or 224")] = None
    class_order: ClassOrder = None
    manifest: ManifestOption = None
    device: Device = None
    workers: Workers = None
    threads: Threads = None
    quarantine_limit: QuarantineLimit = 0.1
    trust_checkpoint: Trust = False

    def open(self, checkpoint: Path, **more: Any) -> "Trained":
        """A checkpoint and the validation videos; ``more`` as :func:`taf_fast.run.trained.open_trained`."""
        # Not at the top: the decoders are slow to import, and the help does without.
        from taf_fast.run.trained import open_trained

        options = vars(self) | {"device": device_of(self.device)}
        return open_trained(checkpoint=checkpoint, **options, **more)


@dataclasses.dataclass(frozen=True)
class BatchedOptions(TrainedOptions):
    """:class:`TrainedOptions` of a command that goes through all validation videos."""

    batch_size: Annotated[
        int,
        typer.Option(help="Clips at once on each device, each with all its crops.", rich_help_panel=MACHINE),
    ] = 32


def with_trained_options(
    into: str, options: type[TrainedOptions] = BatchedOptions
) -> Callable[[Callable], Callable]:
    """Decorate a command: its parameter ``into`` is an ``options``, collected from the command line."""
    return collect(into, inspect.signature(options).parameters.values(), lambda values: options(**values))


def device_of(name: str | None) -> torch.device:
    """The device of that name; None for a GPU if there is one, or else the CPU.

    Raises:
        RunError: PyTorch cannot use the device.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=ranks.own_device(name))
    except (RuntimeError, AssertionError) as error:
        raise RunError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return torch.device(name)


def machine_of(given: dict[str, Any]) -> dict[str, Any]:
    """The values of a run that depend on its device, where ``given`` leaves them open."""
    device = device_of(given.get("device"))
    on_gpu = device.type == "cuda"
    return {"compile": on_gpu, "decoder": AUTO if on_gpu else "pyav"} | given | {"device": str(device)}


def png_and_csv(option: str) -> Callable[[Path | None], Path | None]:
    """The callback of an option for a picture, a PNG file next to which a CSV file of its numbers is put."""

    def checked(path: Path | None) -> Path | None:
        if path is None:
            return None
        if path.suffix != ".png":
            raise RunError(f"{option} must be a .png file, got {path}")
        require_writable(path, path.with_suffix(".csv"))
        return path

    return checked


def require_different(*paths: Path | None) -> None:
    """Raise a RunError if two results of a command go to the same file."""
    seen: set[Path] = set()
    for path in paths:
        if path is not None and path.resolve() in seen:
            raise RunError(f"{path} is the file of two results, expected one for each")
        if path is not None:
            seen.add(path.resolve())


def require_writable(*paths: Path | None) -> None:
    """Raise an error unless every file can be written: before hours of work, not after them."""
    for path in paths:
        if path is not None and not path.parent.is_dir():
            raise RunError(f"{path} cannot be written: there is no folder {path.parent}")
        if path is not None:
            files.require_writable(path)
