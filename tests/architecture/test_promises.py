"""A docstring that says where its guarantees are asserted names a test that exists."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("cluster", "comms", "parallel", "recipes", "trainer")


def test_every_test_that_a_source_names_exists():
    named = {
        (source.relative_to(ROOT), test)
        for package in PACKAGES
        for source in (ROOT / package).rglob("*.py")
        for test in re.findall(r"tests/[\w/]+\.py", source.read_text())
    }
    assert len(named) > 20
    assert [(str(s), t) for s, t in sorted(named) if not (ROOT / t).is_file()] == []
