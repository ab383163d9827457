"""YAML 1.2 scalars, a line for every key, and nothing but plain values."""

import pytest
import yaml

from recipes.problems import Problem
from recipes.tree import plain
from recipes.yaml_marks import MarkedReader, RecipeLoader, scalar_text


def read(text):
    problems: list[Problem] = []
    entry = MarkedReader("x.yaml", problems).read(text)
    return entry, [str(problem) for problem in problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("3E5", 3e5),
        ("1.5", 1.5),
        (".5", 0.5),
        ("-2", -2),
        ("10_000", 10_000),
        ("true", True),
        ("null", None),
        ("~", None),
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("010", "010"),
        ("'1'", "1"),
        ("[1, 2.5]", [1, 2.5]),
        ("-.inf", float("-inf")),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    entry, problems = read(text)
    assert problems == []
    assert entry.value == value
    assert type(entry.value) is type(value)


@pytest.mark.parametrize(
    "value", ["1e-3", "no", "true", "null", "", "a: b", "# c", "10", "two\nlines", "~", " pad "]
)
def test_text_that_looks_like_something_else_is_written_so_that_it_stays_text(value):
    entry, problems = read(scalar_text(value))
    assert problems == []
    assert entry.value == value


def test_every_key_knows_its_line():
    entry, _ = read("run:\n  name: a\n\ndata:\n  seq_len:\n    12\n")
    assert str(entry.value["run"].value["name"].origin) == "x.yaml:2"
    assert str(entry.value["data"].value["seq_len"].origin) == "x.yaml:5"


def test_a_key_written_twice_is_reported_with_both_lines():
    entry, problems = read("run:\n  name: a\n  seed: 1\n  name: b\n")
    assert problems == ["x.yaml:4: run.name: written twice, first at x.yaml:2; remove one"]
    assert plain(entry.value) == {"run": {"name": "a", "seed": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "x.yaml:1: not valid YAML"),
        ("a: 1\n\tb: 2", "x.yaml:2: not valid YAML: found character '\\t'"),
        ("a: &x 1\nb: *x", "x.yaml:2: not valid YAML: aliases are not allowed"),
        ("a: !!python/object:os.system x", "x.yaml:1: a: the tag"),
        ("a: !!int x", "x.yaml:1: a: the tag"),
        ("a: 1\n---\nb: 2", "x.yaml:2: not valid YAML: but found another document"),
        ("? [1]\n: 2", "x.yaml:1: a key must be a word"),
        ("[" * 3000, "not valid YAML: nested too deeply"),
        ("a: \x00", "not valid YAML"),
    ],
)
def test_what_is_not_plain_yaml_is_named_with_its_line(text, message):
    _, problems = read(text)
    assert len(problems) == 1
    assert message in problems[0]


def test_the_loader_of_others_is_untouched():
    assert yaml.safe_load("a: no") == {"a": False}
    assert RecipeLoader.yaml_implicit_resolvers is not yaml.SafeLoader.yaml_implicit_resolvers
