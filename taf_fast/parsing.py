"""YAML and JSON from anywhere as plain values: what is wrong is a ValueError of one line."""

import json
import math
import os
import re
from collections.abc import Iterator
from typing import Any, NoReturn

import yaml

# With aliases, a short text can stand for a value that no memory holds.
_MOST_YAML_VALUES = 100_000
_MOST_YAML_CHARACTERS = 200_000
_LONGEST_YAML_NUMBER = 100
_DEEPEST_YAML = 50
# In JSON, characters that text cannot have are always escaped: few texts need a closer look.
_SUSPECT = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
# Parsers raise these on unexpected text, in addition to their own errors.
_ODD = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)


def parse_yaml(text: str) -> Any:
    """The value of a YAML document.

    Raises:
        ValueError: not YAML; a name in a mapping that is no text or stands there twice; or values that are
            nested too deeply, too many, too long a number, or not text for the system.
    """
    if len(text) > _MOST_YAML_CHARACTERS:
        raise ValueError(f"it has {len(text)} characters, expected at most {_MOST_YAML_CHARACTERS}")
    try:
        value = yaml.load(text, _Loader)
        _require_text(value)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(where + _one_line(error.problem or error.context or "not YAML")) from None
    except (yaml.YAMLError, *_ODD) as error:
        raise ValueError(_one_line(str(error)) or "not YAML") from None
    return value


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON document.

    Raises:
        ValueError: not JSON, which has no NaN and no Infinity; or values that are nested too deeply, too
            large a number, or not text for the system. A JSONDecodeError knows where in the text.
    """
    try:
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite)
        if _SUSPECT.search(text if isinstance(text, str) else text.decode("utf-8", "replace")):
            _require_text(value)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def to_json(value: Any, indent: int | None = None) -> str:
    """``value`` as JSON; ValueError if a number in it is NaN or infinite, which JSON does not have."""
    return json.dumps(value, indent=indent, allow_nan=False)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader for mappings whose names are text, each there once."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > _DEEPEST_YAML:
            raise ValueError("it is nested too deeply")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _values(node, {}) > _MOST_YAML_VALUES:
            raise ValueError(f"it stands for more than {_MOST_YAML_VALUES} values")
        return node


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """The number of values that a node stands for, aliases written out; checks its names and numbers."""
    if id(node) in known:
        if not known[id(node)]:
            raise _at(node, "a value contains itself")
        return known[id(node)]
    known[id(node)] = 0
    if isinstance(node, yaml.MappingNode):
        _require_names([name for name, _ in node.value])
    elif node.tag.endswith((":int", ":float")):
        _require_number(node)
    inner = 0 if isinstance(node, yaml.ScalarNode) else sum(_values(part, known) for part in _parts(node))
    known[id(node)] = 1 + inner
    return known[id(node)]


def _require_number(node: yaml.Node) -> None:
    if len(node.value) > _LONGEST_YAML_NUMBER:
        raise _at(node, f"a number of {len(node.value)} characters")
    if re.match("[-+]?0[0-9_]", node.value) or ":" in node.value:
        raise _at(node, f"{node.value} is a number to base 8 or 60, expected base 10, or quotes")


def _parts(node: yaml.Node) -> Iterator[yaml.Node]:
    for part in node.value:
        yield from part if isinstance(part, tuple) else (part,)


def _require_names(names: list[yaml.Node]) -> None:
    seen = set()
    for name in names:
        merge = name.tag == "tag:yaml.org,2002:merge"
        if not merge and name.tag != "tag:yaml.org,2002:str":
            shown = repr(name.value) if isinstance(name, yaml.ScalarNode) else "a list or mapping"
            raise _at(name, f"a name must be text, in quotes if need be, got {shown}")
        if name.value in seen:
            raise _at(name, f"{name.value!r} is there twice")
        seen.add(name.value)


def _at(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _require_text(value: Any) -> None:
    """ValueError for text with a character that names of files cannot have: NUL, or half of a pair."""
    if isinstance(value, dict):
        for name, item in value.items():
            _require_text(name)
            _require_text(item)
    elif isinstance(value, list):
        for item in value:
            _require_text(item)
    elif isinstance(value, str):
        try:
            whole = "\0" not in value and os.fsencode(value) is not None
        except UnicodeEncodeError:
            whole = False
        if not whole:
            raise ValueError(f"{value!r} has a character that is no text")


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"the number {text[:_LONGEST_YAML_NUMBER]} is too large")
    return value


def _one_line(text: str) -> str:
    return " ".join(text.split())
