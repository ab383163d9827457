"""Layers win in order, inheritance has no circles, and a written-out recipe loads to the same."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.bundled import bundled_recipes
from recipes.load import load_recipe
from recipes.problems import RecipeProblems
from recipes.references import escape
from recipes.yaml_marks import MarkedReader, scalar_text
from trainer.config import JobConfig
from trainer.errors import RecipeError
from trainer.reads import leaves_of

NAMES = [bundled.name for bundled in bundled_recipes()]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_every_bundled_recipe_loads_by_name_and_by_path(name):
    by_name = load_recipe(name)
    assert by_name.recipe == load_recipe(str(by_name.path)).recipe
    assert by_name.recipe.run.name == name
    assert set(by_name.origins) == {key for key, _ in leaves_of(by_name.recipe)}


@pytest.mark.parametrize("bundled", bundled_recipes(), ids=lambda b: b.name)
def test_every_bundled_recipe_opens_with_what_people_need_to_know(bundled):
    lines = bundled.path.read_text().splitlines()
    assert lines[0] == "# yaml-language-server: $schema=schema.json"
    head = "\n".join(line for line in lines[1:20] if line.startswith("#"))
    for word in ("devices", "memory", "time", "launch    braid "):
        assert word in head
    assert len(bundled.summary) > 20
    assert bundled.name in head


def test_layers_win_in_order(here):
    (here / "a.yaml").write_text("run: {seed: 1, project: a}\noptim: {lr: 1e-4, eps: 1e-6}\n")
    (here / "sub").mkdir()
    (here / "sub" / "b.yaml").write_text("base: ../a.yaml\noptim:\n  lr: 2e-4\n")
    loaded = load_recipe("sub/b.yaml", ["run.project=c"])
    recipe, origins = loaded.recipe, loaded.origins
    assert (recipe.optim.lr, recipe.optim.eps) == (2e-4, 1e-6)
    assert (recipe.run.seed, recipe.run.project, recipe.run.name) == (1, "c", "b")
    assert origins["optim.lr"] == "sub/b.yaml:3"
    assert origins["optim.eps"] == "a.yaml:2"
    assert origins["run.project"] == "command line"
    assert origins["run.name"] == "default"
    assert origins["optim.betas"] == "default"


def test_a_base_may_be_bundled_and_a_section_removed(here):
    (here / "mine.yaml").write_text("base: quickstart\nmodel: {moe: null}\ntrain:\n")
    recipe = load_recipe("mine.yaml").recipe
    assert recipe.model.moe is None
    assert recipe.model.qk_norm
    assert recipe.train.steps == load_recipe("quickstart").recipe.train.steps


def test_inheriting_in_a_circle_is_refused(here):
    (here / "a.yaml").write_text("base: b.yaml\n")
    (here / "b.yaml").write_text("\nbase: a.yaml\n")
    with pytest.raises(RecipeProblems) as caught:
        load_recipe("a.yaml")
    assert "b.yaml:2: base: recipes inherit in a circle: a.yaml -> b.yaml -> a.yaml" in str(
        caught.value
    )


def test_a_mistake_in_a_base_names_the_base(here):
    (here / "a.yaml").write_text("train:\n  steps: x\n")
    (here / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(RecipeProblems, match=r"a\.yaml:2: train\.steps: expected a whole number"):
        load_recipe("b.yaml")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quickstrat", "did you mean quickstart?"),
        ("nowhere/none.yaml", "bundled recipes are debug_cpu, dense_fsdp_gpu"),
        ("mine.yml", "did you mean mine.yaml?"),
        ("folder", "folder is a folder; name the recipe file in it"),
        ("binary.yaml", "binary.yaml is not text in UTF-8"),
    ],
)
def test_a_recipe_that_is_not_there(here, name, message):
    (here / "mine.yaml").write_text("")
    (here / "folder").mkdir()
    (here / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError) as caught:
        load_recipe(name)
    assert message in str(caught.value)


def test_a_missing_base_is_reported_at_its_line(here):
    (here / "a.yaml").write_text("run: {seed: 1}\nbase: nowhere.yaml\n")
    with pytest.raises(RecipeProblems, match=r"a\.yaml:2: base: there is no recipe 'nowhere.yaml'"):
        load_recipe("a.yaml")


def test_an_empty_file_is_the_defaults(here):
    (here / "empty.yaml").write_text("# nothing\n")
    recipe = load_recipe("empty.yaml").recipe
    defaults = JobConfig()
    assert recipe.job == dataclasses.replace(
        defaults, run=dataclasses.replace(defaults.run, name="empty")
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_written_out_recipe_loads_to_the_same_with_the_same_keys_set(here, name):
    loaded = load_recipe(name, ["run.project=$${x}", "data.source=a # b", "optim.eps=1e-9"])
    (here / "recipe.yaml").write_text(loaded.text)
    again = load_recipe("recipe.yaml")
    assert again.recipe == loaded.recipe
    explicit = {key for key, origin in loaded.origins.items() if origin != "default"}
    assert {key for key, origin in again.origins.items() if origin != "default"} == explicit
    assert again.origins["optim.eps"].startswith("recipe.yaml:")
    assert "# command line" in loaded.text


def test_a_mistake_under_defaults_names_its_line(here):
    (here / "a.yaml").write_text("defaults:\n  train:\n    steps: x\n")
    with pytest.raises(RecipeProblems, match=r"a\.yaml:3: train\.steps: expected a whole number"):
        load_recipe("a.yaml")


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t")))
def test_any_text_survives_being_written_out(text):
    problems = []
    entry = MarkedReader("x", problems).read(f"key: {scalar_text(escape(text))}  # origin")
    assert problems == []
    assert entry.value["key"].value == escape(text)
