"""Recipes: the values of a run as YAML files, the paper's by name."""

import dataclasses
from fractions import Fraction
from pathlib import Path

import yaml

from taf_fast.run.config import FinetuneConfig, RunError, tuples

_FOLDER = Path(__file__).parents[1] / "recipes"

NAMES = tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))

# What belongs to one run or one machine, not to a recipe.
_NOT_IN_RECIPES = {
    *(
        "data",
        "out",
        "manifest",
        "checkpoint",
        "imagenet",
        "class_order",
        "device",
        "compile",
        "decoder",
        "threads",
    ),
    *("checkpoint_every", "quarantine_limit"),
}


def read_recipe(name_or_path: str) -> dict:
    """Values of :class:`taf_fast.run.config.FinetuneConfig`, checked by their names alone.

    ``base`` in a recipe names others, in the folder ``base`` beside it or among those of the package,
    whose values it takes over; later ones win, its own win over all. ``epsilon`` and ``step_size`` may
    be fractions such as 64/255.

    Args:
        name_or_path: one of ``NAMES``, or a YAML file.

    Raises:
        RunError: no such recipe, or not a mapping of known names.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = _FOLDER / f"{name_or_path}.yaml"
        if name_or_path not in NAMES:
            raise RunError(f"no recipe {name_or_path!r}, expected a YAML file or one of {', '.join(NAMES)}")
    return recipe_values(_read(path), f"recipe {path}")


def recipe_values(values: dict, source: str) -> dict:
    """``values`` of a YAML file as those of FinetuneConfig: fractions as numbers and lists as tuples.

    Raises:
        RunError: a name that no recipe has, or a fraction that is none; ``source`` says where.
    """
    known = {field.name for field in dataclasses.fields(FinetuneConfig)} - _NOT_IN_RECIPES
    if unknown := sorted(map(str, set(values) - known)):
        raise RunError(f"{source} has unknown keys: {', '.join(unknown)}")
    numbers = {}
    for name in ("epsilon", "step_size"):
        if isinstance(values.get(name), str):
            try:
                numbers[name] = float(Fraction(values[name]))
            except (ValueError, ZeroDivisionError):
                raise RunError(
                    f"{source}: {name} must be a number or a fraction as 64/255, got {values[name]!r}"
                ) from None
    return tuples(values | numbers)


def official_sampling(model: str) -> str:
    """How the official code of a model, one of :data:`taf_fast.models.NAMES`, takes frames from a video:
    ``sampling`` of :class:`taf_fast.data.TrainingView`."""
    family = model.partition("_")[0]
    return _read(_FOLDER / "base" / f"{family}.yaml")["sampling"]


def read_mapping(path: Path, kind: str) -> dict:
    """What a YAML file holds; RunError, naming the ``kind`` of file, unless that is a mapping."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{kind} {path} does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(f"{kind} {path} is no YAML file: {error}") from None
    if not isinstance(values, dict):
        raise RunError(f"{kind} {path} must be a mapping of names to values, got {type(values).__name__}")
    return values


def _read(path: Path) -> dict:
    values = read_mapping(path, "recipe")
    merged: dict = {}
    for base in values.pop("base", []):
        beside = path.parent / "base" / f"{base}.yaml"
        merged |= _read(beside if beside.is_file() else _FOLDER / "base" / f"{base}.yaml")
    return merged | values
