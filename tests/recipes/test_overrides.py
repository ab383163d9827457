"""All spellings mean the same, the last one wins, text is taken literally."""

import pytest

from recipes.keys import key_table
from recipes.overrides import parse_overrides
from recipes.problems import COMMAND_LINE
from recipes.schema import Recipe
from recipes.tree import leaves

TABLE = key_table(Recipe)


def parse(*tokens):
    problems = []
    tree = parse_overrides(tokens, TABLE, problems)
    return {key: entry.value for key, entry in leaves(tree)}, [str(p) for p in problems]


@pytest.mark.parametrize(
    "tokens",
    [
        ("train.steps=5",),
        ("--train.steps=5",),
        ("--train.steps", "5"),
        ("train.steps=4", "--train.steps", "5"),
    ],
)
def test_all_spellings_mean_the_same_and_the_last_one_wins(tokens):
    assert parse(*tokens) == ({"train.steps": 5}, [])


@pytest.mark.parametrize(
    ("tokens", "value"),
    [
        (("--train.compile",), True),
        (("--no-train.compile",), False),
        (("--train.compile", "false"), False),
        (("--train.compile=true",), True),
        (("--train.compile", "run.name=x"), True),
        (("train.compile=true", "--no-train.compile"), False),
    ],
)
def test_true_and_false_have_short_forms(tokens, value):
    values, problems = parse(*tokens)
    assert values["train.compile"] is value
    assert problems == []


@pytest.mark.parametrize(
    ("token", "key", "value"),
    [
        ("optim.lr=1e-3", "optim.lr", 1e-3),
        ("optim.betas=[0.9, 0.99]", "optim.betas", [0.9, 0.99]),
        ("model.moe=null", "model.moe", None),
        ("model.moe={top_k: 4}", "model.moe.top_k", 4),
        ("parallel.shard=auto", "parallel.shard", "auto"),
        ("run.name=2024", "run.name", "2024"),
        ("run.name=a=b: c", "run.name", "a=b: c"),
        ("run.name=", "run.name", ""),
        ("data.source=${run.dir}/x", "data.source", "${run.dir}/x"),
        ("--train.max-skipped-steps=3", "train.max_skipped_steps", 3),
    ],
)
def test_values_are_yaml_and_text_is_literal(token, key, value):
    assert parse(token) == ({key: value}, [])


def test_a_negative_number_is_a_value():
    assert parse("--optim.weight_decay", "-1") == ({"optim.weight_decay": -1}, [])


def test_values_come_from_the_command_line():
    tree = parse_overrides(["run.seed=1"], TABLE, [])
    assert dict(leaves(tree))["run.seed"].origin == COMMAND_LINE


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (("gurk",), "command line: 'gurk' is not an override; write section.key=value"),
        (("--train.steps",), "command line: train.steps: `--train.steps` needs a value"),
        (("--train.steps", "--train.compile"), "`--train.steps` needs a value"),
        (("--train.stepz", "5"), "train.stepz: unknown key; did you mean train.steps?"),
        (("--no-train.steps",), "train.steps: `--no-train.steps` is for true or false keys"),
        (("optim.lr=[1",), "command line: optim.lr: not valid YAML"),
    ],
)
def test_mistakes_name_the_command_line(tokens, message):
    _, problems = parse(*tokens)
    assert len(problems) == 1
    assert message in problems[0]
