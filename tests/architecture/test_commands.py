"""The commands of a fresh clone: what `make` would do, and what .ci/run accepts.

- torch is installed first and alone, or an index may bring another build of it.
- What is installed is not installed again.
- A Python that is too old is named, with the remedy.
- No file that installs names a package registry: pip's own settings decide.
- .ci/run fails where the checks fail, the tests fail, or a test leaves a process behind.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from source_tree import REPOSITORY

SETUP_FILES = ["Makefile", "constraints.txt", "pyproject.toml"]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    # An outer make would pass its flags and its ARGS on.
    inherited = {k: v for k, v in os.environ.items() if k not in ("ARGS", "MAKEFLAGS", "MAKELEVEL")}
    return subprocess.run(
        command, cwd=folder, env=inherited, capture_output=True, text=True, check=False
    )


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name in SETUP_FILES:
        shutil.copy(REPOSITORY / name, tmp_path)
    return tmp_path


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    (tmp_path / ".ci").mkdir()
    shutil.copy(REPOSITORY / ".ci" / "run", tmp_path / ".ci")
    return tmp_path


def test_help_names_every_command():
    text = (REPOSITORY / "Makefile").read_text()
    commands = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE).group(1).split()
    shown = run(REPOSITORY, "make", "help").stdout
    assert {"train", "test", "check", "bench"} <= set(commands)
    assert [name for name in commands if not re.search(rf"^  {name} ", shown, re.MULTILINE)] == []


@pytest.mark.parametrize(
    ("target", "editable", "last"),
    [
        ("train", "-e .", ".venv/bin/braid run recipes/quickstart.yaml"),
        ("test", "-e '.[dev]'", ".venv/bin/python -m pytest"),
    ],
)
def test_a_fresh_clone_installs_torch_first_and_alone(clone, target, editable, last):
    plan = [line.strip() for line in run(clone, "make", "-n", target).stdout.splitlines()]
    installs = [line for line in plan if "pip install" in line]
    assert re.search(r" torch==[\d.]+$", installs[0])
    assert installs[-1].endswith(f"-c constraints.txt {editable}")
    assert plan[-1] == last


def test_an_installed_clone_installs_nothing(clone):
    (clone / ".venv" / "bin").mkdir(parents=True)
    for name in ("bin/python", ".ready", ".ready-dev"):
        (clone / ".venv" / name).touch()
    for target in ("train", "test"):
        assert "pip" not in run(clone, "make", "-n", target).stdout
    later = (clone / ".venv" / ".ready").stat().st_mtime + 10
    os.utime(clone / "constraints.txt", (later, later))
    assert "pip install" in run(clone, "make", "-n", "train").stdout


def test_an_old_python_is_named_with_the_remedy(clone):
    python = clone / "oldpython"
    python.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.8.1\nexit 1\n')
    python.chmod(0o755)
    result = run(clone, "make", "train", "PYTHON=./oldpython")
    assert result.returncode != 0
    assert "needs Python 3.11 or newer" in result.stderr
    assert "Python 3.8.1" in result.stderr
    assert "make train PYTHON=" in result.stderr
    assert not (clone / ".venv").exists()


def test_ci_calls_the_test_command_of_the_readme():
    assert re.search(r"^make test\b", (REPOSITORY / ".ci" / "run").read_text(), re.MULTILINE)
    assert re.search(r"\bmake test\b", (REPOSITORY / "README.md").read_text())


def test_no_registry_is_named():
    files = [*SETUP_FILES, ".ci/run", ".github/workflows/ci.yml", ".pre-commit-config.yaml"]
    assert [name for name in files if "://" in (REPOSITORY / name).read_text()] == []


@pytest.mark.parametrize(
    ("check", "test", "code"),
    [("true", "true", 0), ("false", "true", 1), ("true", "false", 1)],
)
def test_ci_fails_where_checks_or_tests_fail(judged, check, test, code):
    (judged / "Makefile").write_text(f"lint:\n\t{check}\ntest:\n\techo 3 passed\n\t{test}\n")
    result = run(judged, ".ci/run")
    assert result.returncode == code
    assert "3 passed" in result.stdout


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux's /proc")
def test_ci_fails_where_a_test_leaves_a_process_behind(judged):
    leave = "setsid sleep 321 >/dev/null 2>&1 &"
    (judged / "Makefile").write_text(f"lint:\n\ttrue\ntest:\n\t{leave}\n")
    result = run(judged, ".ci/run")
    assert result.returncode == 1
    assert "sleep 321" in result.stderr
