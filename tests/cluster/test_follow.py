"""The guarantees of cluster/follow.py, over connections that break as scripted."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from ray.job_submission import JobStatus

from cluster.follow import GIVE_UP_S, follow
from trainer.errors import InfrastructureError

Script = list[tuple[str, Exception | None]]


class Cluster:
    """Sends the scripted output, a new piece of script for every connection; then nothing."""

    def __init__(self, streams: Script, states: list[JobStatus | Exception]) -> None:
        self.streams = streams
        self.states = states
        self.now_s = 0.0

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        """Output from the first line on, up to the break."""
        text, error = self.streams.pop(0) if len(self.streams) > 1 else self.streams[0]
        for start in range(0, len(text), 5):
            yield text[start : start + 5]
        if error:
            raise error

    def get_job_info(self, name: str) -> Any:
        """The next state, or the last again."""
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(state, Exception):
            raise state
        return SimpleNamespace(status=state)

    def follow(self, view: Any) -> Any:
        """Follow this cluster's only job, in its own time."""
        client: Any = self
        return follow(
            client,
            "job",
            address="http://head:8265",
            view=view,
            clock=lambda: self.now_s,
            sleep=self.sleep,
        )

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds


def test_every_line_is_shown_once_over_broken_connections(view: Any) -> None:
    cluster = Cluster(
        [
            ("one\ntwo\nthr", RuntimeError("closed unexpectedly")),
            ("", aiohttp.ServerDisconnectedError()),
            ("one\ntwo\nthree\nfour\n", ConnectionResetError("reset")),
            ("one\ntwo\nthree\nfour\nfive", None),
        ],
        [JobStatus.RUNNING, ConnectionError("refused"), JobStatus.SUCCEEDED],
    )
    assert cluster.follow(view).status is JobStatus.SUCCEEDED
    assert view.notes == ["one", "two", "three", "four", "five"]
    assert "closed unexpectedly" in view.warnings[0]


def test_a_long_silence_ends_with_advice_and_a_short_one_does_not(view: Any) -> None:
    gone = ConnectionError("refused")
    cluster = Cluster([("", gone)], [gone] * 5 + [JobStatus.RUNNING] + [gone])
    with pytest.raises(InfrastructureError, match="ray job logs job --address http://head:8265"):
        cluster.follow(view)
    assert GIVE_UP_S < cluster.now_s < GIVE_UP_S + 60
