"""YAML and JSON from anywhere: plain values, or one error of one line, soon."""

import json
import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from taf_fast.parsing import parse_json, parse_yaml, to_json

BOMB = "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))])

# No surrogates and no NUL, which no name of a file has.
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=20)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3, column 1: 'a' is there twice"),
        ("x: {a: 1, 'a': 1}", "line 1, column 11: 'a' is there twice"),
        ("x: {<<: {a: 1}, <<: {a: 2}}", "'<<' is there twice"),
        ("1: a", "a name must be text, in quotes if need be, got '1'"),
        ("on: a", "a name must be text, in quotes if need be, got 'on'"),
        ("? [a]\n: 1", "a name must be text, in quotes if need be, got a list or mapping"),
        (BOMB, "it stands for more than 100000 values"),
        ("a: &a [*a]", "a value contains itself"),
        ("a: " + "9" * 5000, "a number of 5000 characters"),
        ("a: 0x" + "f" * 5000, "a number of 5002 characters"),
        ("a: 1:30", "1:30 is a number to base 8 or 60"),
        ("a: 010", "010 is a number to base 8 or 60"),
        ("[" * 100, "it is nested too deeply"),
        ("- " * 51, "it is nested too deeply"),
        ("x" * 300_000, "it has 300000 characters, expected at most 200000"),
        ("a: !!int ''", "string index out of range"),
        ("a: !!bool perhaps", "perhaps"),
        ("a: 2020-13-45", "month must be in 1..12"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: \0", "special characters are not allowed"),
        ('a: "\\0"', "has a character that is no text"),
        ('"\\ud800": a', "has a character that is no text"),
        ("a: *b", "found undefined alias 'b'"),
        ("--- a\n--- b", "but found another document"),
    ],
    ids=lambda value: value[:20],
)
def test_no_yaml(text, message):
    with pytest.raises(ValueError) as refused:
        parse_yaml(text)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_aliases_and_merges_within_reason():
    assert parse_yaml("a: &a {b: 1, c: 2}\nd: {<<: *a, c: 3}\ne: [*a, *a]") == {
        "a": {"b": 1, "c": 2},
        "d": {"b": 1, "c": 3},
        "e": [{"b": 1, "c": 2}] * 2,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[NaN]", "NaN is no number of JSON"),
        ("-Infinity", "-Infinity is no number of JSON"),
        ("[1e999]", "the number 1e999 is too large"),
        ("9" * 5000, "4300 digits"),
        ("[" * 100_000, "it is nested too deeply"),
        ('{"a": 1} b', "Extra data"),
        ('"\\ud800"', "has a character that is no text"),
        ('{"\\u0000": 1}', "has a character that is no text"),
        ("", "Expecting value"),
    ],
    ids=lambda value: value[:20],
)
@pytest.mark.parametrize("kind", [str, str.encode])
def test_no_json(text, message, kind):
    with pytest.raises(ValueError) as refused:
        parse_json(kind(text))
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_bytes_in_the_name_of_a_file_come_back():
    name = b"\xff.webm".decode(errors="surrogateescape")
    assert parse_json(to_json([name])) == parse_yaml(yaml.safe_dump([name])) == [name]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_only_finite_numbers_are_written(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"a": [value]})


@pytest.mark.slow
@given(VALUES)
def test_values_come_back(value):
    assert parse_json(to_json(value)) == value
    assert parse_json(to_json(value, indent=1).encode()) == value


@pytest.mark.slow
@given(st.dictionaries(TEXTS, st.none() | st.booleans() | st.integers(-(10**20), 10**20) | TEXTS))
def test_mappings_come_back_from_yaml(value):
    assert parse_yaml(yaml.safe_dump(value)) == value


@pytest.mark.slow
@given(st.text() | st.text("[]{}:,-?&*!|>'\"%@\n ab01.~<=", max_size=40))
def test_any_text_is_read_or_refused(text):
    for parse in (parse_yaml, parse_json):
        try:
            parse(text)
        except ValueError as error:
            assert "\n" not in str(error)


@given(st.binary())
def test_any_bytes_are_json_or_not(content):
    try:
        expected = json.loads(content)
    except ValueError:
        with pytest.raises(ValueError):
            parse_json(content)
    else:
        assert parse_json(content) == expected
