"""Verbs, exit codes, and JSON that is nothing but JSON."""

import json
import subprocess
import sys

import pytest

from recipes.cli import main


@pytest.fixture
def braid(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return call


def test_show_says_where_each_value_came_from(braid, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text("train:\n  steps: 70\n")
    code, out, _ = braid("show", "r.yaml", "--optim.lr", "1e-4", "--train.compile")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert code == 0
    assert rows["train.steps"] == ["70", "r.yaml:2"]
    assert rows["optim.lr"] == ["0.0001", "command", "line"]
    assert rows["train.compile"] == ["true", "command", "line"]
    assert rows["run.seed"] == ["0", "default"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.steps=90", "--json"],
        ["--json", "--train.steps", "90"],
        ["--train.steps=90", "--no-train.compile", "--json"],
    ],
)
def test_overrides_and_options_mix_in_any_order(braid, overrides):
    code, out, err = braid("show", "quickstart", *overrides)
    assert code == 0
    assert json.loads(out)["train.steps"] == {"value": 90, "origin": "command line"}
    assert err == ""


def test_schema_is_json(braid):
    code, out, _ = braid("schema")
    assert code == 0
    assert json.loads(out)["title"] == "Recipe"


def test_ls_names_every_bundled_recipe(braid):
    code, out, _ = braid("ls")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()][:2] == ["debug_cpu", "dense_fsdp_gpu"]
    _, out, _ = braid("ls", "--json")
    assert {"quickstart", "sft_chat"} <= {entry["name"] for entry in json.loads(out)}


def test_doctor_answers_in_json_with_its_verdict_as_code(braid, tmp_path):
    code, out, _ = braid("doctor", "--json", "--run-dir", str(tmp_path))
    report = json.loads(out)
    assert code == (0 if report["healthy"] else 3)
    assert {"torch", "ray", "memory", "run folder", "ray access"} <= {
        finding["name"] for finding in report["findings"]
    }


def test_version(braid):
    code, out, _ = braid("--version")
    assert code == 0
    assert out.startswith("braid ")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["fly"], "No such command 'fly'"),
        (["ls", "--bogus"], "No such option"),
        (["submit", "quickstart"], "--address"),
        (["show", "quickstrat"], "did you mean quickstart?"),
        (["show", "quickstart", "train.stepz=1"], "did you mean train.steps?"),
        (["show", "--train.steps", "quickstart"], "the recipe comes before its overrides"),
        (["run", "quickstart", "train.steps=0"], "train.steps must be positive, got 0"),
        (["check", "quickstart", "gurk"], "'gurk' is not an override"),
        (["generate", "runs/none", "--prompt", "x"], "there is no run folder runs/none"),
        (["export", "runs/none", "--to", "x"], "there is no run folder runs/none"),
    ],
)
def test_usage_errors_exit_with_2_and_say_why(braid, arguments, text):
    code, out, err = braid(*arguments)
    assert code == 2
    assert text in err
    assert "Traceback" not in err
    assert out == ""


def test_a_failure_under_json_is_json_too(braid):
    code, out, err = braid("show", "quickstart", "train.stepz=1", "train.steps=x", "--json")
    document = json.loads(out)
    assert code == document["exit_code"] == 2
    assert [problem["key"] for problem in document["problems"]] == ["train.steps", "train.stepz"]
    assert "2 problems in" in err


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "recipes.cli", "show", "debug_cpu", "--train.steps", "0"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "command line: train.steps must be positive, got 0" in done.stderr
