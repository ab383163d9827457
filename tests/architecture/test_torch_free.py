"""Decisions are pure: they load neither torch nor ray, read no clock and start no threads.

Configuration, layout, schedules, the planner, staleness and the watchdog can be tested, and used
in a simulator, on their own. What a command line needs before a worker exists is light as well.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from fnmatch import fnmatch

import pytest
from source_tree import REPOSITORY, Source, imports, package_sources, planted

PURE = (
    "*/config.py",
    "parallel/fit.py",
    "parallel/layout.py",
    "parallel/hierarchy/volume.py",
    "parallel/hierarchy/widths.py",
    "parallel/pipeline/schedule.py",
    "parallel/pipeline/split.py",
    "parallel/sequence/scheme.py",
    "parallel/sequence/stretches.py",
    "parallel/sequence/volume.py",
    "offload/schedule.py",
    "trainer/islands/lag.py",
    "trainer/islands/pace.py",
    "trainer/islands/reunion.py",
    "trainer/islands/rules.py",
    "trainer/islands/share.py",
    "trainer/keeping/newest.py",
    "trainer/keeping/partners.py",
    "trainer/keeping/room.py",
    "trainer/keeping/rules.py",
    "offload/activations/amount.py",
    "offload/activations/policy.py",
    "trainer/numeric/history.py",
    "trainer/numeric/jumps.py",
    "trainer/numeric/policy.py",
    "trainer/numeric/rules.py",
    "trainer/planner/*.py",
    "trainer/planner/assignment/*.py",
    "trainer/activation_plan.py",
    "trainer/progress.py",
    "trainer/spread.py",
    "comms/weights/blocks.py",
    "comms/weights/codec.py",
    "comms/weights/plan.py",
    "trainer/rl/ledger.py",
    "trainer/rl/ledger_records.py",
    "trainer/rl/rules.py",
    "trainer/rl/sizing.py",
    "trainer/rl/staleness.py",
    "cluster/drills/judge.py",
    "cluster/recovery/*.py",
    "cluster/rl/places.py",
    "cluster/rl/seat*.py",
    "cluster/watchdog/[!ps]*.py",
    "recipes/schema.py",
)
LIGHT = (
    "cluster/rescuer.py",
    "cluster/rewards/*.py",
    "cluster/watchdog/*.py",
    "comms/telemetry/reading.py",
    "comms/telemetry/records.py",
    "recipes/cli.py",
    "recipes/load.py",
    "trainer/boards.py",
    "trainer/checkpoint/folder.py",
    "trainer/checkpoint/manifest.py",
    "trainer/checkpoint/proof.py",
    "trainer/checkpoint/resume.py",
    "trainer/data/packing.py",
    "trainer/data/sequence.py",
    "trainer/errors.py",
    "trainer/keeping/folder.py",
    "trainer/keeping/header.py",
    "trainer/keeping/hold.py",
    "trainer/keeping/record.py",
    "trainer/keeping/rescue.py",
    "trainer/metrics.py",
    "trainer/model/size.py",
    "trainer/reads.py",
    "trainer/rl/advantages.py",
    "trainer/rl/conducting/*.py",
    "trainer/rl/entropy.py",
    "trainer/rl/groups.py",
    "trainer/rl/rejection.py",
    "trainer/rl/mailbox.py",
    "trainer/rl/messages.py",
    "trainer/rl/payload.py",
    "trainer/rl/rewards/outcome.py",
    "trainer/rl/tasks/*.py",
    "trainer/run_folder.py",
    "trainer/schedule.py",
    "trainer/status.py",
)
DRIVER = ("cluster/launch.py", "cluster/submit.py")
"""They need Ray; torch would cost them a second before the first worker can start."""

HEAVY = ("torch", "ray")
IMPURE = {"asyncio", "concurrent", "datetime", "multiprocessing", "random", "secrets"} | {
    "signal",
    "socket",
    "subprocess",
    "threading",
    "time",
}

PROBE = """
import importlib, json, sys
found = []
for name in sys.argv[2:]:
    before = set(sys.modules)
    importlib.import_module(name)
    heavy = {module.split(".")[0] for module in set(sys.modules) - before}
    found += [f"{name} loads {library}" for library in sys.argv[1].split(",") if library in heavy]
print(json.dumps(found))
"""


def chosen(sources: Sequence[Source], patterns: Sequence[str]) -> list[Source]:
    """The sources whose path fits one of `patterns`."""
    return [s for s in sources if any(fnmatch(s.path, pattern) for pattern in patterns)]


def heavy_imports(modules: Sequence[str], libraries: Sequence[str]) -> list[str]:
    """Which of `modules`, imported one after the other in a fresh interpreter, load a library."""
    run = subprocess.run(
        [sys.executable, "-c", PROBE, ",".join(libraries), *modules],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def impurities(sources: Sequence[Source]) -> list[str]:
    """Imports that bring a clock, chance, threads or other processes."""
    return [str(found) for found in imports(sources) if found.top in IMPURE]


def test_decisions_load_neither_torch_nor_ray():
    modules = [source.module for source in chosen(package_sources(), PURE + LIGHT)]
    assert "parallel.layout" in modules
    assert "trainer.planner.plan" in modules
    assert heavy_imports(modules, HEAVY) == []


def test_the_driver_of_a_cluster_loads_no_torch():
    modules = [source.module for source in chosen(package_sources(), DRIVER)]
    assert "cluster.launch" in modules
    assert heavy_imports(modules, ["torch"]) == []


def test_decisions_read_no_clock_and_start_no_threads():
    pure = chosen(package_sources(), PURE)
    assert len(pure) > 5
    assert impurities(pure) == []


def test_a_heavy_import_is_found():
    assert heavy_imports(["json", "ctypes.util"], ["ctypes"]) == ["ctypes.util loads ctypes"]


@pytest.mark.parametrize("text", ["import time", "def f():\n    from threading import Lock"])
def test_an_impure_import_is_found(text):
    assert len(impurities([planted("trainer/planner/x.py", text)])) == 1
