"""Durations are measured on monotonic clocks: `time.time()` says when, and is never reckoned with.

A clock that is set while a run trains may shift what people read, and nothing else.
"""

import ast
from collections.abc import Iterator

import pytest
from source_tree import Source, dotted, package_sources, planted

RECKONS = {
    "cluster/submit.py": "compares with the time that another machine wrote",
    "cluster/watching.py": "the moment of a fault, for the order in which faults are told",
    "recipes/top.py": "how old the last step is that another process wrote",
}
MOMENTS = {"now_s", "at_s", "time_s"}
"""Names for seconds since the epoch."""


def reckonings(source: Source) -> Iterator[int]:
    """Lines on which the wall clock is reckoned with, or kept under the name of a duration."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.BinOp | ast.Compare) and any(map(is_wall, ast.walk(node))):
            yield node.lineno
        elif isinstance(node, ast.Assign) and is_wall(node.value):
            names = {target.id for target in node.targets if isinstance(target, ast.Name)}
            if not names <= MOMENTS:
                yield node.lineno


def is_wall(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and dotted(node.func) == "time.time"


def test_no_duration_is_measured_on_the_wall_clock() -> None:
    found = [
        f"{source.path}:{line}"
        for source in package_sources()
        if source.path not in RECKONS
        for line in reckonings(source)
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "elapsed_s = time.time() - begin_s",
        "if time.time() > deadline_s: pass",
        "began_s = time.time()",
    ],
)
def test_a_planted_one_is_found(text: str) -> None:
    assert list(reckonings(planted("cluster/x.py", text))) == [1]


def test_a_moment_is_none() -> None:
    text = "now_s = time.time()\nevent(time=time.time())"
    assert list(reckonings(planted("cluster/x.py", text))) == []
