"""What a run left in its folder, so far."""

from typing import Any

from trainer.config import JobConfig
from trainer.run_folder import RunFolder, read_lines


def metrics(job: JobConfig) -> list[dict[str, Any]]:
    """Of each step, in the order in which they were written."""
    return read_lines(RunFolder.of(job.run).metrics)


def losses(job: JobConfig) -> list[float]:
    """Of steps 1, 2, … without a gap and without one twice."""
    found = metrics(job)
    assert [line["step"] for line in found] == list(range(1, len(found) + 1))
    return [line["loss"] for line in found]


def losses_by_step(job: JobConfig) -> dict[int, float]:
    """Of a run that leaves steps out; none is there twice."""
    found = metrics(job)
    by_step = {line["step"]: line["loss"] for line in found}
    assert len(by_step) == len(found)
    return by_step


def events(job: JobConfig, kind: str) -> list[dict[str, Any]]:
    """Of one kind."""
    return [event for event in read_lines(RunFolder.of(job.run).events) if event["kind"] == kind]
