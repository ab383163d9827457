"""Every problem has a remedy; untested is a note, missing or too old a problem."""

import json
from dataclasses import replace

import pytest

from recipes.bundled import FOLDER
from recipes.doctor import examine
from recipes.machine import Machine, look_at
from recipes.wording import GIB

TESTED = json.loads((FOLDER / "tested_versions.json").read_text())
GOOD = Machine(
    python=TESTED["python"]["tested"][-1] + ".1",
    packages={name: f"{entry['tested'][-1]}.0" for name, entry in TESTED["packages"].items()},
    cores=8,
    memory_bytes=32 * GIB,
    shared_memory_bytes=GIB,
    run_memory_bytes=0,
    run_dir="runs",
    run_dir_writable=True,
    run_dir_free_bytes=100 * GIB,
    devices=("H100, 80 GiB",),
    torch_problem=None,
    ray_auth_mode=None,
    ray_token=True,
    ray_address=None,
)


def finding(machine, name):
    (found,) = [f for f in examine(machine, TESTED) if f.name == name]
    return found


def with_package(name, version):
    return replace(GOOD, packages={**GOOD.packages, name: version})


def test_a_good_machine_has_nothing_to_say():
    assert {f.verdict for f in examine(GOOD, TESTED)} == {"ok"}


@pytest.mark.parametrize(
    ("machine", "name", "verdict", "text"),
    [
        (with_package("torch", None), "torch", "problem", "missing, needed for model"),
        (with_package("torch", "2.1.0"), "torch", "problem", "2.1.0, older than 2.11"),
        (with_package("torch", "2.99.0+cu130"), "torch", "note", "not among the tested"),
        (with_package("torch", "2.13.0+cpu"), "torch", "ok", "2.13.0+cpu"),
        (with_package("pyarrow", None), "pyarrow", "note", "missing, needed for Parquet data"),
        (replace(GOOD, python="3.10.2"), "python", "problem", "older than 3.11"),
        (replace(GOOD, memory_bytes=GIB), "memory", "problem", "1.00 GiB"),
        (replace(GOOD, shared_memory_bytes=1), "shared memory", "note", "free"),
        (replace(GOOD, torch_problem="no libc"), "devices", "problem", "no libc"),
        (replace(GOOD, devices=()), "devices", "ok", "no GPU"),
        (replace(GOOD, run_dir_writable=False), "run folder", "problem", "not writable"),
        (replace(GOOD, run_dir_free_bytes=GIB), "run folder", "problem", "1.00 GiB free"),
        (replace(GOOD, ray_auth_mode="disabled"), "ray access", "problem", "RAY_AUTH_MODE"),
        (replace(GOOD, ray_token=False), "ray access", "note", "no token yet"),
        (replace(GOOD, ray_address="h:1"), "ray access", "ok", "RAY_ADDRESS=h:1"),
    ],
)
def test_each_finding(machine, name, verdict, text):
    found = finding(machine, name)
    assert found.verdict == verdict
    assert text in found.found
    assert found.remedy or verdict != "problem"


def test_facts_are_looked_up(tmp_path):
    (tmp_path / "token").write_text("x")
    machine = look_at(
        packages=["pytest", "no-such-package-here"],
        run_dir=tmp_path / "new" / "runs",
        environ={"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"), "RAY_AUTH_MODE": "token"},
        home=tmp_path,
    )
    assert machine.packages["pytest"] == pytest.__version__
    assert machine.packages["no-such-package-here"] is None
    assert machine.run_dir_writable
    assert machine.run_dir_free_bytes > 0
    assert machine.cores >= 1
    assert machine.memory_bytes > GIB
    assert machine.ray_token
    assert machine.torch_problem is None
    assert not (tmp_path / "new").exists()


def test_what_is_pinned_was_tested():
    pins = dict(
        line.split("==")
        for line in (FOLDER.parent / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    for name, entry in TESTED["packages"].items():
        if name in pins:
            assert any(pins[name].startswith(f"{series}.") for series in entry["tested"]), name
