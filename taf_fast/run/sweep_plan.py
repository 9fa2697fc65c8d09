"""Sweeps: the runs of an ablation, from a YAML file, all checked before the first of them begins."""

import dataclasses
import itertools
import json
from pathlib import Path

from taf_fast.run.config import FinetuneConfig, RunError
from taf_fast.run.recipes import read_mapping, read_recipe, recipe_values
from taf_fast.run.trained import describe

_FOLDER = Path(__file__).parents[1] / "sweeps"

NAMES = tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))
MEASURES = ("robustness", "attention")
START = "start"

# The sections of a file, as they are if missing.
_SECTIONS = {"base": "", "values": {}, "seeds": [0], "start": {}, "arms": {}, "grid": {}, "measure": []}
_KINDS = {str: "the name of a recipe or a YAML file", dict: "a mapping", list: "a list"}


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of a sweep: what sets it apart from others of its seed, and all of its values.

    ``arm`` is "start" for the run that those of its seed start from, and empty in a sweep that has a grid
    alone. ``point`` is the values of the grid as the file has them.
    """

    arm: str
    point: dict[str, str]
    config: FinetuneConfig

    @property
    def folder(self) -> Path:
        return Path(self.config.out)

    def __str__(self) -> str:
        names = [self.arm, *(f"{name} {value}" for name, value in self.point.items())]
        return ", ".join([*filter(None, names), f"seed {self.config.seed}"])


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Runs in the order to run them: seed by seed, ``start`` first; and what is measured of each."""

    runs: tuple[Run, ...]
    measure: tuple[str, ...]


def read_sweep(name_or_path: str, given: dict, trust_checkpoint: bool = False) -> Sweep:
    """The runs of a sweep.

    The values of a run are those of ``base``, ``values``, its arm (or ``start``) and its point of the grid,
    of which later ones win. What they leave open of the model is as in the checkpoint. The folder of a run is
    ``OUT/ARM/POINT/seedN``, without the arm or the point if there are none.

    Args:
        name_or_path: one of ``NAMES``, or a YAML file as in docs/sweeps.md.
        given: values of FinetuneConfig that recipes do not have, the same for all runs; ``out`` is that of
            the sweep, ``checkpoint`` None if the file has a ``start``.
        trust_checkpoint: run the code a ``torch.save`` checkpoint may hold.

    Raises:
        RunError, CheckpointError: a file, or any run of it, that cannot work.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = _FOLDER / f"{name_or_path}.yaml"
        if name_or_path not in NAMES:
            raise RunError(f"no sweep {name_or_path!r}, expected a YAML file or one of {', '.join(NAMES)}")
    source = f"sweep {path}"
    content = read_mapping(path, "sweep")
    has_start = "start" in content
    content = _sections(content, source)
    shared = _base(path, content["base"]) | _values(content["values"], f"{source}, values")
    start_values = shared | _values(content["start"], f"{source}, start")
    arms, points = _arms(content["arms"], content["grid"], source), _points(content["grid"], source)

    if has_start == (given["checkpoint"] is not None):
        raise RunError(f"{source}: expected either a start, which makes the checkpoint, or --checkpoint")
    known = {} if has_start else describe(Path(given["checkpoint"]), trust_checkpoint)
    runs = []
    for seed in content["seeds"]:
        own = given | {"seed": seed}
        if has_start:
            start = _run(START, {}, start_values | own, source)
            known = {name: getattr(start.config, name) for name in ("model", "num_segments", "size")}
            own["checkpoint"] = str(start.folder / "model.safetensors")
            runs.append(start)
        for (arm, values), (point, varied) in itertools.product(arms.items(), points):
            run = _run(arm, point, known | shared | values | varied | own, source)
            if run.config.model != known["model"]:
                raise RunError(
                    f"{source}: {run}: model must be that of the checkpoint, {known['model']}, "
                    f"got {run.config.model}"
                )
            runs.append(run)
    _require_own_folders(runs, source)
    return Sweep(tuple(runs), tuple(content["measure"]))


def _sections(content: dict, source: str) -> dict:
    if unknown := sorted(map(str, set(content) - set(_SECTIONS))):
        known = ", ".join(_SECTIONS)
        raise RunError(f"{source} has unknown keys: {', '.join(unknown)}, expected some of {known}")
    content = _SECTIONS | content
    for name, missing in _SECTIONS.items():
        if not isinstance(content[name], type(missing)):
            raise RunError(f"{source}: {name} must be {_KINDS[type(missing)]}, got {content[name]!r}")
    if not (content["arms"] or content["grid"]):
        raise RunError(f"{source} has nothing to compare, expected arms or a grid")
    seeds = content["seeds"]
    if not seeds or any(type(seed) is not int or seed < 0 for seed in seeds):
        raise RunError(f"{source}: seeds must be whole numbers of at least 0, got {seeds!r}")
    for name in content["measure"]:
        if name not in MEASURES:
            raise RunError(f"{source}: measure must be some of {', '.join(MEASURES)}, got {name!r}")
    return content


def _base(path: Path, name: str) -> dict:
    """A file is beside that of the sweep."""
    if not name:
        return {}
    return read_recipe(str(path.parent / name) if name.endswith((".yaml", ".yml")) else name)


def _values(values, source: str) -> dict:
    if not isinstance(values, dict):
        raise RunError(f"{source} must be a mapping of names to values, got {values!r}")
    if "seed" in values:
        raise RunError(f"{source} has a seed, expected in seeds")
    return recipe_values(values, source)


def _arms(arms: dict, grid: dict, source: str) -> dict[str, dict]:
    """Values by the name of the arm."""
    found = {}
    for name, values in arms.items():
        if not isinstance(name, str) or not name or name.startswith(".") or name == START:
            raise RunError(
                f"{source}: {name!r} is no name of an arm, expected text that is not {START!r} and does not "
                "begin with a dot"
            )
        found[name] = _values(values, f"{source}, {name}")
        if both := sorted(set(found[name]) & set(grid)):
            raise RunError(f"{source}: {', '.join(both)} is in {name} and in the grid, expected in one")
    return found or {"": {}}


def _points(grid: dict, source: str) -> list[tuple[dict[str, str], dict]]:
    """Every point of the grid, as the file has it and as values; without a grid one of no values."""
    for name, choices in grid.items():
        if not isinstance(choices, list) or not choices:
            raise RunError(f"{source}: {name} in the grid must be a list of values, got {choices!r}")
    points = [dict(zip(grid, chosen, strict=True)) for chosen in itertools.product(*grid.values())]
    texts = [
        {name: v if isinstance(v, str) else json.dumps(v, default=str) for name, v in p.items()}
        for p in points
    ]
    return list(zip(texts, (_values(point, f"{source}, grid") for point in points), strict=True))


def _run(arm: str, point: dict[str, str], values: dict, source: str) -> Run:
    parts = (arm, ",".join(f"{name}={value}" for name, value in point.items()))
    # A fraction, or an arm named by one, is not a folder in a folder.
    parts = [part.replace("/", "_") for part in parts if part]
    out = Path(values["out"], *parts, f"seed{values['seed']}")
    try:
        return Run(arm, point, FinetuneConfig(**values | {"out": str(out)}))
    except RunError as error:
        raise RunError(f"{source}: {', '.join(parts)}: {error}") from None


def _require_own_folders(runs: list[Run], source: str) -> None:
    seen: dict[Path, Run] = {}
    for run in runs:
        if (other := seen.setdefault(run.folder, run)) is not run:
            raise RunError(f"{source}: {other} and {run} would share the folder {run.folder}")
