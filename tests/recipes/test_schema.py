"""One strict type, its JSON Schema shipped and current, and neither torch nor ray behind it."""

import json
import re
import subprocess
import sys

import jsonschema
import pytest

from recipes.bundled import FOLDER, bundled_recipes
from recipes.keys import describe, documentation, key_table, nested_dataclasses
from recipes.schema import REFERENCE_PATTERN, Recipe, json_schema
from recipes.tree import plain
from recipes.yaml_marks import MarkedReader


def test_the_shipped_schema_is_current():
    shipped = json.loads((FOLDER / "schema.json").read_text())
    assert shipped == json_schema(), "stale: run `braid schema > recipes/schema.json`"


@pytest.mark.parametrize("cls", nested_dataclasses(Recipe), ids=lambda cls: cls.__name__)
def test_every_key_is_described_to_editors(cls):
    schema = json_schema()
    properties = (schema if cls is Recipe else schema["$defs"][cls.__name__])["properties"]
    texts = documentation(cls)
    for name in cls.__dataclass_fields__:
        described = texts.get(name) or json_schema_description(schema, properties[name])
        assert described, f"{cls.__name__}.{name} has no docstring"


def json_schema_description(schema, entry):
    reference = entry.get("$ref", "").rsplit("/", 1)[-1]
    return schema["$defs"].get(reference, {}).get("description", "")


def is_valid(recipe):
    return jsonschema.Draft202012Validator(json_schema()).is_valid(recipe)


@pytest.mark.parametrize("bundled", bundled_recipes(), ids=lambda b: b.name)
def test_editors_accept_every_bundled_recipe(bundled):
    entry = MarkedReader("x", []).read(bundled.path.read_text())
    assert is_valid(plain(entry.value))


@pytest.mark.parametrize(
    "recipe",
    [
        {"train": {"stepz": 1}},
        {"train": {"steps": "ten"}},
        {"sched": {"name": "x"}},
        {"zzz": {}},
    ],
)
def test_editors_refuse_what_the_loader_refuses(recipe):
    assert not is_valid(recipe)


def test_references_fit_everywhere():
    assert re.match(REFERENCE_PATTERN, "${data.seq_len}")
    assert is_valid({"train": {"steps": "${data.seq_len}"}, "model": {"moe": None}})


def test_the_table_of_keys_knows_leaves_sections_and_optional_sections():
    table = key_table(Recipe)
    assert "train.steps" in table.leaves
    assert "train" in table.sections
    assert "train" not in table.leaves
    assert "model.moe" in table.leaves
    assert "model.moe" in table.sections
    assert "model.moe.top_k" in table.leaves
    assert "cluster.deadlines.placing_s" in table.leaves
    assert table.children("parallel")[0].startswith("parallel.")


def test_types_are_described_in_words():
    leaves = key_table(Recipe).leaves
    assert describe(leaves["parallel.shard"]) == "a whole number or `auto`"
    assert describe(leaves["model.path"]) == "text or null"
    assert describe(leaves["optim.betas"]) == "a list of 2, each a number"
    assert {describe(annotation) for annotation in leaves.values()}


def test_the_job_is_the_recipe_less_what_the_driver_needs():
    recipe = Recipe()
    names = set(type(recipe.job).__dataclass_fields__)
    assert names == set(Recipe.__dataclass_fields__) - {"cluster", "recovery", "watchdog"}
    assert all(recipe.job.__dict__[name] is recipe.__dict__[name] for name in names)


def test_looking_at_a_recipe_loads_neither_torch_nor_ray():
    program = (
        "import sys, recipes.cli, recipes.schema\n"
        "try: recipes.cli.main(['show', 'quickstart', '--json'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'ray'} & set(sys.modules), 'heavy'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run.name"]["value"] == "quickstart"
