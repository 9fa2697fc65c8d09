"""How the values of a run are declared: each one once, as a dataclass field that says all there is to say.

The command line, the recipes, the checks of a configuration, the rules of resuming, the grouping of runs in
the report and the table in docs/options.md are all derived from these declarations.
"""

import dataclasses
import enum
import math
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

from taf_fast.errors import RunError


class Scope(enum.Enum):
    """What a value belongs to."""

    EXPERIMENT = "what is computed: recipes and sweeps set it"
    SEED = "the repetition of an experiment: recipes may set it"
    INPUT = "the files that a run starts from"
    MACHINE = "where and how a run is computed: the result may differ by rounding"
    SHARING = "how ranks share the clips of a step: the result differs as with another number of them"
    NEUTRAL = "no influence on what is computed"


#: The decoder that is fastest for the clips of a run.
AUTO = "auto"

IN_RECIPES = (Scope.EXPERIMENT, Scope.SEED)
FREE_ON_RESUME = (Scope.SHARING, Scope.NEUTRAL)
#: Runs that differ in values of these scopes alone are runs of the same experiment.
FREE_WITHIN_EXPERIMENT = (Scope.SEED, Scope.MACHINE, Scope.SHARING, Scope.NEUTRAL)

#: A condition on a value, and what it must be: "at least 1".
Rule = tuple[Callable[[Any], bool], str]


def at_least(low: float) -> Rule:
    return lambda value: value >= low, f"at least {low}"


def above(low: float, high: float | None = None) -> Rule:
    if high is None:
        return lambda value: value > low, f"above {low}"
    return lambda value: low < value <= high, f"above {low} and at most {high}"


def between(low: float, high: float) -> Rule:
    return lambda value: low <= value <= high, f"between {low} and {high}"


BELOW_ONE: Rule = (lambda value: 0 <= value < 1, "in [0,1)")
UNIT = between(0, 1)


@dataclasses.dataclass(frozen=True)
class Value:
    """The declaration of one value of a run.

    Args:
        help: one or two sentences, with the unit.
        panel: group of options in the help.
        choices: what the value may be; empty for anything of its type.
        rule: checked unless the value is None.
        option: name of the command-line option; None for ``--`` and the field's name, "" for a value that
            only recipes and sweeps set.
        shown: the default in words, if the field's own default does not say it.
    """

    help: str
    panel: str
    scope: Scope = Scope.EXPERIMENT
    choices: tuple[str, ...] = ()
    rule: Rule | None = None
    option: str | None = None
    shown: str | None = None


def value(default: Any = dataclasses.MISSING, *, help: str, panel: str, **declared: Any) -> Any:
    """A dataclass field with the declaration ``Value(help, panel, **declared)``."""
    metadata = {"value": Value(help, panel, **declared)}
    return dataclasses.field(default=default, metadata=metadata)


def declaration(field: dataclasses.Field) -> Value:
    return field.metadata["value"]


def default_text(field: dataclasses.Field) -> str | None:
    """The default as people write it; None if the value has to be given."""
    declared = declaration(field)
    if declared.shown is not None or field.default is dataclasses.MISSING:
        return declared.shown
    return text(field.default)


def text(value: Any) -> str:
    """A value as people write it: 64/255, not 0.25098039215686274."""
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ", ".join(map(text, value))
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    if isinstance(value, float):
        fraction = Fraction(value).limit_denominator(1000)
        return str(fraction) if float(fraction) == value else repr(value)
    return str(value)


def number(text: str) -> float:
    """The number that ``text`` is, such as 0.25, 1e-4 or 64/255.

    Raises:
        ValueError: neither a number nor a fraction.
    """
    above, slash, below = text.partition("/")
    try:
        value = float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"must be a number or a fraction such as 64/255, got {text!r}")
    return value


def kinds(hint: Any) -> tuple[type, ...]:
    """The classes that a type hint allows: ``(tuple, NoneType)`` for ``tuple[int, ...] | None``."""
    hints = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return tuple(get_origin(kind) or kind for kind in hints)


def check(name: str, value: Any, hint: Any, declared: Value) -> None:
    """Raise RunError, naming the value and what it must be, unless it is what was declared."""
    allowed = kinds(hint)
    if not _fits(value, hint):
        raise wrong(name, " or ".join(map(_named, get_args(hint) if len(allowed) > 1 else (hint,))), value)
    if value is None:
        return
    or_none = ", or none" if NoneType in allowed else ""
    if float in allowed and not -sys.float_info.max <= value <= sys.float_info.max:
        raise wrong(name, "a finite number" + or_none, value)
    if declared.choices and value not in declared.choices:
        raise wrong(name, f"one of {', '.join(declared.choices)}{or_none}", value)
    if declared.rule is not None and not declared.rule[0](value):
        raise wrong(name, declared.rule[1] + or_none, value)


def _fits(value: Any, hint: Any) -> bool:
    """Whether ``value`` is of the type; an int will do for a float, but a bool will not do for either."""
    if isinstance(hint, UnionType):
        return any(_fits(value, kind) for kind in get_args(hint))
    if get_origin(hint) is tuple:
        items = get_args(hint)
        if not isinstance(value, tuple):
            return False
        expected = items[:1] * len(value) if items[-1] is Ellipsis else items
        return len(value) == len(expected) and all(map(_fits, value, expected))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, hint) or (hint is float and isinstance(value, int))


def _named(hint: Any) -> str:
    if hint is NoneType:
        return "none"
    return str(hint) if get_args(hint) else hint.__name__


def wrong(name: str, expected: str, value: Any) -> RunError:
    return RunError(f"{name} must be {expected}, got {quoted(value)}")


def quoted(value: Any) -> str:
    """A value for an error message, paths as the text that they were given as."""
    return repr(str(value) if isinstance(value, Path) else value)
