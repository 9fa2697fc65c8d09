"""Sweeps: the runs of an ablation, read from a YAML file and all checked before the first begins."""

import dataclasses
import itertools
import json
from pathlib import Path

from taf_fast.errors import RunError
from taf_fast.run.config import FinetuneConfig, names_of
from taf_fast.run.folder import MEASURES, RunFolder
from taf_fast.run.recipes import read_mapping, read_recipe, recipe_values
from taf_fast.run.trained import describe
from taf_fast.run.values import IN_RECIPES

_FOLDER = Path(__file__).parents[1] / "sweeps"

NAMES = tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))
START = "start"

# The sections of a file, with the values of those that are missing.
_SECTIONS = {"base": "", "values": {}, "seeds": [0], "start": {}, "arms": {}, "grid": {}, "measure": []}
_KINDS = {str: "the name of a recipe or a YAML file", dict: "a mapping", list: "a list"}


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep: its place in it, and all of its values.

    ``arm`` is "start" for the run whose weights the others of its seed start from, and empty in a sweep of a
    grid alone. ``point`` has the values of the grid as the file writes them.
    """

    arm: str
    point: dict[str, str]
    config: FinetuneConfig

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.config.out)

    def __str__(self) -> str:
        names = [self.arm, *(f"{name} {value}" for name, value in self.point.items())]
        return ", ".join([*filter(None, names), f"seed {self.config.seed}"])


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Runs in their order, seed by seed and ``start`` first, and the names of the measures of each."""

    runs: tuple[PlannedRun, ...]
    measure: tuple[str, ...]


def read_sweep(name_or_path: str, given: dict, trust_checkpoint: bool = False) -> Sweep:
    """Read and check the runs of a sweep.

    A run takes its values from ``base``, ``values``, its arm (or ``start``) and its point of the grid; later
    ones win. The checkpoint decides the model, frames and size that they leave open. The folder of a run is
    ``OUT/ARM/POINT/seedN``, without the arm or the point if there are none.

    Args:
        name_or_path: one of ``NAMES``, or a YAML file in the form of the files behind these.
        given: values of FinetuneConfig that recipes do not have, the same for all runs; ``out`` is the folder
            of the sweep, ``checkpoint`` is None if the file has a ``start``.
        trust_checkpoint: run the code that a ``torch.save`` checkpoint may hold.

    Raises:
        RunError, CheckpointError: the file, the checkpoint or any of the runs cannot work.
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
            own["checkpoint"] = start.folder.weights
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
        if name not in list(MEASURES):  # it may be a list itself
            raise RunError(f"{source}: measure must be some of {', '.join(MEASURES)}, got {name!r}")
    return content


def _base(path: Path, name: str) -> dict:
    """The values of a recipe by name, or of a file next to that of the sweep; the files that all runs start
    from are given with the sweep."""
    if not name:
        return {}
    values = read_recipe(str(path.parent / name) if name.endswith((".yaml", ".yml")) else name)
    return {name: value for name, value in values.items() if name in names_of(*IN_RECIPES)}


def _values(values, source: str) -> dict:
    if not isinstance(values, dict):
        raise RunError(f"{source} must be a mapping of names to values, got {values!r}")
    if "seed" in values:
        raise RunError(f"{source} has a seed, expected it in seeds")
    return recipe_values(values, source)


def _arms(arms: dict, grid: dict, source: str) -> dict[str, dict]:
    """Values by the name of the arm."""
    found = {}
    for name, values in arms.items():
        if not isinstance(name, str) or not name or name.startswith(".") or name == START:
            raise RunError(
                f"{source}: {name!r} cannot name an arm, expected text that is not {START!r} and does not "
                "begin with a dot"
            )
        found[name] = _values(values, f"{source}, {name}")
        if both := sorted(set(found[name]) & set(grid)):
            raise RunError(f"{source}: {', '.join(both)} is in {name} and in the grid, expected in one")
    return found or {"": {}}


def _points(grid: dict, source: str) -> list[tuple[dict[str, str], dict]]:
    """Every point of the grid, as the file writes it and as values; without a grid, one empty point."""
    for name, choices in grid.items():
        if not isinstance(choices, list) or not choices:
            raise RunError(f"{source}: {name} in the grid must be a list of values, got {choices!r}")
    points = [dict(zip(grid, chosen, strict=True)) for chosen in itertools.product(*grid.values())]
    texts = [
        {name: v if isinstance(v, str) else json.dumps(v, default=str) for name, v in p.items()}
        for p in points
    ]
    return list(zip(texts, (_values(point, f"{source}, grid") for point in points), strict=True))


def _run(arm: str, point: dict[str, str], values: dict, source: str) -> PlannedRun:
    place = ",".join(f"{name}={value}" for name, value in point.items())
    # The slash of a fraction must not begin a folder in a folder.
    parts = [part.replace("/", "_") for part in (arm, place) if part]
    out = Path(values["out"], *parts, f"seed{values['seed']}")
    try:
        return PlannedRun(arm, point, FinetuneConfig(**values | {"out": str(out)}))
    except RunError as error:
        raise RunError(f"{source}: {', '.join(parts)}: {error}") from None


def _require_own_folders(runs: list[PlannedRun], source: str) -> None:
    seen: dict[Path, PlannedRun] = {}
    for run in runs:
        if (other := seen.setdefault(run.folder.path, run)) is not run:
            raise RunError(f"{source}: {other} and {run} would share the folder {run.folder.path}")
