"""A Ray cluster of this machine for the tests that need one, and a view that remembers."""

from collections.abc import Iterator
from typing import Any

import pytest

from cluster.environment import LOOPBACK_DEFAULTS, RAY_DEFAULTS, set_unless_set

# Ray reads them when it is first imported, which the import of a test module may do.
set_unless_set(RAY_DEFAULTS)
set_unless_set(LOOPBACK_DEFAULTS)


class RecordingView:
    """Keeps all it is told."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.steps: list[dict[str, Any]] = []
        self.endings: list[dict[str, Any]] = []
        self.failures: list[dict[str, Any]] = []

    def phase(self, name: str, detail: str) -> None:
        """Keep the name."""
        self.phases.append(name)

    def note(self, text: str) -> None:
        """Keep it."""
        self.notes.append(text)

    def warning(self, text: str) -> None:
        """Keep it."""
        self.warnings.append(text)

    def step(self, record: dict[str, Any]) -> None:
        """Keep it."""
        self.steps.append(record)

    def finished(self, outcome: dict[str, Any]) -> None:
        """Keep it."""
        self.endings.append(outcome)

    def failed(self, failure: dict[str, Any]) -> None:
        """Keep it."""
        self.failures.append(failure)


@pytest.fixture
def view() -> RecordingView:
    """A fresh view."""
    return RecordingView()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on the cluster come last: it is started once, and works beside no other test."""
    items.sort(
        key=lambda item: isinstance(item, pytest.Function) and "local_cluster" in item.fixturenames
    )


@pytest.fixture(scope="session")
def local_cluster() -> Iterator[None]:
    """One cluster for all tests: starting it takes seconds."""
    from cluster.ray_connect import connected

    with connected("local"):
        yield
