"""Every mistake names its file, line, key and remedy, and all of them come together."""

import pytest

from recipes.load import load_recipe
from recipes.problems import RecipeProblems
from trainer.errors import ExitCode


@pytest.fixture
def problems(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def problems_of(text, *overrides):
        (tmp_path / "r.yaml").write_text(text)
        with pytest.raises(RecipeProblems) as caught:
            load_recipe("r.yaml", overrides)
        assert caught.value.exit_code is ExitCode.RECIPE
        return [str(problem) for problem in caught.value.problems]

    return problems_of


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n  stepz: 3", "r.yaml:2: train.stepz: unknown key; did you mean train.steps?"),
        ("traim: {steps: 3}", "r.yaml:1: traim: unknown key; did you mean train?"),
        ("\nlr: 1", "r.yaml:2: lr: unknown key; did you mean optim.lr?"),
        ("train: {lr: 1}", "train.lr: unknown key; did you mean optim.lr?"),
        ("run: {zzz: 1}", "run.zzz: unknown key; `run` has dir, name, project, resume, sample_"),
        ("zzz: {a: 1}", "zzz: unknown key; sections are checkpoint, cluster, comms, data"),
        (
            "train: {steps: ten}",
            "r.yaml:1: train.steps: expected a whole number, got ten (text)",
        ),
        ("train: {steps: 1e3}", "expected a whole number, got 1000.0 (a number); write 1000"),
        ("train: {steps: true}", "expected a whole number, got true (true or false)"),
        ("train: {compile: 'yes'}", "train.compile: expected true or false, got yes (text)"),
        ("run: {name: 12}", "run.name: expected text, got 12 (a whole number); put it in quotes"),
        ("optim: {lr: .nan}", "optim.lr: expected a number, got .nan (a number); it must be"),
        ("optim: {betas: [0.9]}", "optim.betas: expected a list of 2, each a number, got [0.9]"),
        ("optim: {betas: 0.9}", "optim.betas: expected a list of 2, each a number, got 0.9"),
        (
            "sched: {name: wds}",
            "expected one of `cosine`, `wsd`, `constant`, got wds (text); did you mean `wsd`?",
        ),
        ("parallel: {shard: x}", "expected a whole number or `auto`, got x (text)"),
        ("cluster: 3", "r.yaml:1: cluster: expected a section of keys, got 3"),
        ("model: {moe: 3}", "model.moe: expected a section of keys or null, got 3"),
        ("train: {steps: {a: 1}}", "train.steps: expected a whole number, got a section"),
        ("- a", "r.yaml:1: a recipe is a mapping of sections"),
        ("base: [a]", "r.yaml:1: base: expected a bundled name or a path"),
        ("defaults: 3", "r.yaml:1: defaults: expected a mapping of sections"),
    ],
)
def test_one_mistake(problems, text, message):
    found = problems(text)
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "data:\n  seq_len: 128\ntrain:\n  global_batch_tokens: 1000\n",
            "r.yaml:4: train.global_batch_tokens=1000 is not a multiple of data.seq_len=128; "
            "choose 896 or 1024 (data.seq_len is set at r.yaml:2)",
        ),
        (
            "train: {global_batch_tokens: 1000}",
            "choose 512 or 1024 (data.seq_len has its default)",
        ),
        (
            "model:\n  num_heads: 4\n  num_kv_heads: 3\n",
            "r.yaml:3: model.num_kv_heads=3 does not divide num_heads=4; choose one of [1, 2, 4] "
            "(model.num_heads is set at r.yaml:2)",
        ),
        (
            "model:\n  moe:\n    top_k: 9\n",
            "r.yaml:3: model.moe.top_k=9 must lie between 1 and num_experts=8",
        ),
        (
            "model:\n  rope_scaling:\n    factor: 0.5\n",
            "r.yaml:3: model.rope_scaling.factor: rope_scaling.factor must be at least 1",
        ),
        ("run: {name: a/b}\n", "r.yaml:1: run.name='a/b' names a folder under run.dir"),
        ("train:\n\n  steps: 0\n", "r.yaml:3: train.steps must be positive, got 0"),
        (
            "data: {seq_len: 128}\nmodel: {max_context_tokens: 64}",
            "r.yaml:1: data.seq_len=128 is longer than model.max_context_tokens=64; raise the "
            "latter or shorten the sequence (model.max_context_tokens is set at r.yaml:2)",
        ),
        (
            "cluster:\n  gpus_per_worker: 0.5\n",
            "r.yaml:2: cluster.gpus_per_worker must be 0 or 1, got 0.5",
        ),
    ],
)
def test_a_broken_rule_names_the_lines_of_the_keys_it_involves(problems, text, message):
    found = problems(text)
    assert len(found) == 1
    assert message in found[0]


def test_all_mistakes_come_together_in_the_order_of_the_file(problems):
    found = problems(
        "run: {seed: ten}\n"
        "train:\n"
        "  stepz: 4\n"
        "  global_batch_tokens: 1000\n"
        "optim: {learning_rate: 3, lr: 0}\n"
        "sched: {warmup_steps: -1}\n"
        "model: {moe: {top_k: 9}}\n",
        "--no-optim.eps",
    )
    starts = [problem.split(" ")[0] for problem in found]
    assert starts == ["command", *(f"r.yaml:{line}:" for line in (1, 3, 4, 5, 5, 6, 7))]


def test_a_rule_is_not_judged_on_a_value_that_is_wrong_itself(problems):
    text = "data: {seq_len: '${nothing}'}\ntrain: {global_batch_tokens: 1000}"
    (found,) = problems(text)
    assert "refers to nothing" in found


def test_a_rule_broken_by_an_override_says_so(problems):
    (found,) = problems("data: {seq_len: 128}", "model.max_context_tokens=64")
    assert found.startswith("r.yaml:1: data.seq_len=128 is longer than model.max_context_tokens=64")
    assert found.endswith("(model.max_context_tokens is set on the command line)")


def test_an_override_is_named_as_such(problems):
    assert problems("", "train.steps=0") == ["command line: train.steps must be positive, got 0"]
