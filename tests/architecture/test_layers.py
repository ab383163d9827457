"""Who may import whom. Imports inside functions, under TYPE_CHECKING and through importlib count.

- Packages import only what lies below them: recipes, cluster, trainer, parallel, comms; trainer
  also takes offload. `cluster` reaches below `trainer` only for `config.py` files.
- Outside libraries stay in the packages that own them: ray and psutil in cluster, pydantic, yaml,
  typer and rich in recipes.
- No module reaches itself through its imports.
- Every outside library is a declared dependency.
"""

import re
import sys
import tomllib
from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions

import pytest
from source_tree import (
    PACKAGES,
    REPOSITORY,
    UNKNOWN,
    Import,
    Source,
    imports,
    package_sources,
    planted,
)

BELOW = {
    "comms": set(),
    "offload": set(),
    "parallel": {"comms"},
    "trainer": {"comms", "offload", "parallel"},
    "cluster": {"trainer"},
    "recipes": {"cluster", "comms", "offload", "parallel", "trainer"},
}
CONFIG_ONLY = {"cluster": {"comms", "offload", "parallel"}}
LOADERS_BY_NAME = {
    "cluster/worker.py": "its work is named, so that the driver need not load torch",
    "cluster/rewards/serve.py": "reward functions are named in the recipe",
    "trainer/rl/tasks/own.py": "tasks of a user's own are named in the recipe",
}

MODEL_FORMATS = {"jinja2", "pyarrow", "safetensors", "tokenizers"}
OUTSIDE = {
    "comms": {"numpy", "torch"},
    "offload": {"numpy", "scipy", "torch"},
    "parallel": {"megatron", "numpy", "torch"},
    "trainer": {"numpy", "scipy", "tensorboard", "torch"} | MODEL_FORMATS,
    "cluster": {"numpy", "psutil", "ray", "torch"},
    "recipes": {"pydantic", "pydantic_core", "rich", "torch", "typer", "yaml"},
}


def wrong_directions(sources: Sequence[Source]) -> list[str]:
    """Imports of our packages that do not point down."""
    return [
        str(found)
        for found in imports(sources)
        if found.top in PACKAGES and not points_down(found.importer, found.target)
    ]


def points_down(importer: str, target: str) -> bool:
    """Whether a module of `importer`'s package may import `target`."""
    package, other = importer.split(".")[0], target.split(".")[0]
    if package == other or other in BELOW[package]:
        return True
    return other in CONFIG_ONLY.get(package, set()) and target.split(".")[-1] == "config"


def misplaced_libraries(sources: Sequence[Source]) -> list[str]:
    """Imports of outside libraries by packages that do not own them."""
    return [
        str(found)
        for found in imports(sources)
        if found.top not in PACKAGES
        and found.top not in sys.stdlib_module_names
        and found.top not in OUTSIDE[found.importer.split(".")[0]]
        and not named_by_data(found)
    ]


def named_by_data(found: Import) -> bool:
    """Whether the module comes from data, in a file that may do so."""
    return found.target == UNKNOWN and found.path in LOADERS_BY_NAME


def cycle(sources: Sequence[Source]) -> list[str]:
    """The modules of one import cycle in order, or nothing."""
    graph: dict[str, set[str]] = {source.module: set() for source in sources}
    for found in imports(sources):
        if found.target in graph and found.target != found.importer:
            graph[found.importer].add(found.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_packages_import_only_what_lies_below_them():
    assert wrong_directions(package_sources()) == []


def test_outside_libraries_stay_where_they_belong():
    assert misplaced_libraries(package_sources()) == []


def test_no_module_imports_itself_in_a_circle():
    assert cycle(package_sources()) == []


def test_every_outside_library_is_declared():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = [name for group in project["optional-dependencies"].values() for name in group]
    declared = {
        re.split(r"[\s\[<>=!~;]", name)[0].lower() for name in project["dependencies"] + extras
    }
    # pydantic is one library in two distributions, the second pinned by the first.
    provided_by = packages_distributions() | {"pydantic_core": ["pydantic"]}
    missing = [
        str(found)
        for found in imports(package_sources())
        if found.top not in PACKAGES
        and found.top not in sys.stdlib_module_names
        and not named_by_data(found)
        and not declared & {name.lower() for name in provided_by.get(found.top, [found.top])}
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("comms/x.py", "from trainer import loop"),
        ("comms/x.py", "def f():\n    import offload.schedule"),
        ("offload/x.py", "from comms.groups import join"),
        ("parallel/x.py", "import typing\nif typing.TYPE_CHECKING:\n    import trainer.config"),
        ("trainer/x.py", "import importlib\nimportlib.import_module('cluster.launch')"),
        ("cluster/x.py", "from parallel.layout import Layout"),
        ("cluster/x.py", "from recipes import load"),
    ],
)
def test_an_upward_import_is_found(path, text):
    assert len(wrong_directions([planted(path, text)])) == 1


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("trainer/x.py", "import ray"),
        ("trainer/x.py", "def f():\n    from ray.util import metrics"),
        ("trainer/x.py", "import psutil"),
        ("cluster/x.py", "import yaml"),
        ("parallel/x.py", "from pydantic import BaseModel"),
        ("recipes/x.py", "from ray.job_submission import JobSubmissionClient"),
        ("recipes/x.py", "import importlib\nimportlib.import_module(name)"),
    ],
)
def test_a_misplaced_library_is_found(path, text):
    assert len(misplaced_libraries([planted(path, text)])) == 1


def test_config_files_of_lower_packages_are_open_to_cluster():
    text = "from parallel.config import ParallelConfig\nfrom parallel import config"
    assert wrong_directions([planted("cluster/x.py", text)]) == []


def test_a_lazy_cycle_is_found():
    ring = [
        planted("trainer/a.py", "from trainer import b"),
        planted("trainer/b.py", "def f():\n    from .c import g"),
        planted("trainer/c.py", "import trainer.a"),
    ]
    assert set(cycle(ring)) == {"trainer.a", "trainer.b", "trainer.c"}
