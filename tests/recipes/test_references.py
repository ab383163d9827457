"""References keep types, go through each other, and never in a circle."""

import pytest

from recipes.load import load_recipe
from recipes.problems import RecipeProblems


@pytest.fixture
def load(tmp_path):
    def load_text(text, *overrides):
        path = tmp_path / "r.yaml"
        path.write_text(text)
        return load_recipe(str(path), overrides).recipe

    return load_text


def test_a_whole_reference_keeps_its_type(load):
    recipe = load(
        "data: {seq_len: 256}\n"
        "train: {max_tokens_per_device: '${data.seq_len}'}\n"
        "optim:\n  lr: ${sched.min_lr_ratio}\n  betas: ['${sched.min_lr_ratio}', 0.9]\n"
        "parallel:\n  shard: ${parallel.replica}\n"
    )
    assert recipe.train.max_tokens_per_device == 256
    assert recipe.optim.lr == 0.1
    assert recipe.optim.betas == (0.1, 0.9)
    assert recipe.parallel.shard == "auto"


def test_references_inside_text_are_written_out(load):
    recipe = load("run: {name: 'a-${data.seq_len}-${optim.lr}'}")
    assert recipe.run.name == "a-512-0.001"


def test_references_may_refer_to_references_and_see_overrides(load):
    text = "run: {name: '${run.project}', project: '${data.source}'}\n"
    assert load(text, "data.source=here").run.name == "here"
    assert load(text, "run.project=${run.seed}x").run.name == "0x"


def test_the_run_name_is_known(load):
    assert load("run: {dir: 'out/${run.name}'}").run.dir == "out/r"


def test_an_escaped_reference_is_text(load):
    assert load("run: {project: '$${data.seq_len}'}").run.project == "${data.seq_len}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "run: {name: '${run.project}', project: '${run.name}'}",
            "references go in a circle: run.name -> run.project -> run.name",
        ),
        ("run: {name: '${run.name}'}", "references go in a circle: run.name -> run.name"),
        (
            "data: {seq_len: '${model.max_context}'}",
            "${model.max_context} refers to nothing: model.max_context: unknown key; "
            "did you mean model.max_context_tokens?",
        ),
        ("run: {name: '${data}'}", "${data} refers to nothing: data is a section"),
        ("run: {seed: '${model.moe.top_k}'}", "model.moe.top_k is not set"),
        ("run: {name: 'a${data.seq_len'}", "opens a reference and does not close it"),
        ("train: {steps: '${data.source}'}", "train.steps: expected a whole number, got python"),
    ],
)
def test_a_wrong_reference_is_named(load, text, message):
    with pytest.raises(RecipeProblems) as caught:
        load(text)
    assert message in str(caught.value)
    assert "r.yaml:1: " in str(caught.value)
