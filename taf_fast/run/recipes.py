"""Recipes: the values of a run as YAML files, the paper's by name."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from taf_fast.errors import RunError
from taf_fast.parsing import parse_yaml
from taf_fast.run.config import FIELDS, absolute, hint_of, names_of, tuples
from taf_fast.run.values import IN_RECIPES, Scope, kinds, number

_PACKAGE = Path(__file__).parents[1]
_FOLDER = _PACKAGE / "recipes"


def packaged(folder: str) -> tuple[str, ...]:
    """The names of the YAML files in ``folder`` of the package: those of recipes or of sweeps."""
    return tuple(sorted(path.stem for path in (_PACKAGE / folder).glob("*.yaml")))


NAMES = packaged("recipes")

# What only the configuration of a run has.
_OF_A_RUN = {"data", "out"}


def read_recipe(name_or_path: str) -> dict[str, Any]:
    """Values of :class:`taf_fast.run.config.FinetuneConfig`; their names are checked, their ranges are not.

    ``base`` in a recipe lists other recipes whose values it takes over; they lie in the folder ``base`` next
    to it or in the package's. Later ones take precedence, and the recipe's own values over all. Numbers may
    be fractions such as 64/255.

    Args:
        name_or_path: one of ``NAMES``, or a YAML file. The ``config.yaml`` of a run gives the files that the
            run started from, too, as absolute paths; not its folder, and not where and how it was computed.

    Raises:
        RunError: no such recipe, or not a mapping of known names.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = _FOLDER / f"{name_or_path}.yaml"
        if name_or_path not in NAMES:
            raise RunError(f"no recipe {name_or_path!r}, expected a YAML file or one of {', '.join(NAMES)}")
    values, source = _read(path), f"recipe {path}"
    if not set(values) >= _OF_A_RUN:
        return recipe_values(values, source)
    found = recipe_values(values, source, frozenset(FIELDS))
    inputs = {
        name: absolute(path.parent / value) if Path in kinds(hint_of(name)) and value is not None else value
        for name, value in found.items()
        if name in names_of(Scope.INPUT)
    }
    return {name: value for name, value in found.items() if name in names_of(*IN_RECIPES)} | inputs


def recipe_values(
    values: dict[str, Any], source: str, names: Collection[str] = names_of(*IN_RECIPES)
) -> dict[str, Any]:
    """The values of a YAML file as FinetuneConfig has them: fractions as numbers and lists as tuples.

    Args:
        names: those that the file may have.

    Raises:
        RunError: a name that is not one of ``names``, or text that should be a number; names ``source``.
    """
    if unknown := sorted(map(str, set(values) - set(names))):
        raise RunError(f"{source} has unknown keys: {', '.join(unknown)}")
    numbers = {}
    for name, value in values.items():
        if float in kinds(hint_of(name)) and isinstance(value, str):
            try:
                numbers[name] = number(value)
            except ValueError as error:
                raise RunError(f"{source}: {name} {error}") from None
    return tuples(values | numbers)


def official_sampling(model: str) -> str:
    """How the official code of a model takes frames from a video.

    Args:
        model: one of :data:`taf_fast.models.NAMES`.

    Returns:
        ``sampling`` of :class:`taf_fast.data.TrainingView`.
    """
    family = model.partition("_")[0]
    return _read(_FOLDER / "base" / f"{family}.yaml")["sampling"]


def read_mapping(path: Path, kind: str) -> dict:
    """The mapping that a YAML file holds.

    Raises:
        RunError: no such file, or not a mapping; names the ``kind`` of file.
    """
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{kind} {path} does not exist") from None
    except OSError as error:
        raise RunError(f"{kind} {path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise RunError(f"{kind} {path} is not a valid YAML file: {error}") from None
    if not isinstance(values, dict):
        raise RunError(f"{kind} {path} must be a mapping of names to values, got {type(values).__name__}")
    return values


def _read(path: Path, users: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a recipe with those of its bases; ``users`` are the recipes that it is a base of."""
    values = read_mapping(path, "recipe")
    bases = values.pop("base", [])
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise RunError(f"recipe {path}: base must be a list of names of recipes, got {bases!r}")
    place = path.resolve()
    if place in users:
        raise RunError(f"recipe {path} has itself as a base")
    merged: dict[str, Any] = {}
    for base in bases:
        own = path.parent / "base" / f"{base}.yaml"
        merged |= _read(own if os.path.isfile(own) else _FOLDER / "base" / f"{base}.yaml", (*users, place))
    return merged | values
