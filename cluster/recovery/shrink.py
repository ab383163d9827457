"""With how many ranks a run can go on, and what of its layout gives way. Pure decisions.

Guarantees, each asserted in tests/cluster/recovery/test_shrink.py:
- the global batch stays;
- as many ranks go on as can be laid out;
- copies give way first (`replica`), then how finely states are cut (`shard`); what cuts the model
  itself stays as the recipe has it.
"""

from collections.abc import Iterator
from dataclasses import replace

from trainer.config import JobConfig
from trainer.errors import RecipeError
from trainer.planner.batch import batch_of
from trainer.spread import require_layout


def largest_job(job: JobConfig, *, at_most: int, at_least: int) -> tuple[JobConfig, int] | None:
    """The job as the most ranks from `at_least` to `at_most` can run it, and their number."""
    for ranks in range(at_most, at_least - 1, -1):
        for candidate in _variants(job):
            if _possible(candidate, ranks):
                return candidate, ranks
    return None


def _variants(job: JobConfig) -> Iterator[JobConfig]:
    yield job
    fewer_copies = replace(job.parallel, replica="auto")
    yield replace(job, parallel=fewer_copies)
    yield replace(job, parallel=replace(fewer_copies, shard="auto"))


def _possible(job: JobConfig, ranks: int) -> bool:
    try:
        require_layout(job, ranks)
        batch_of(job, ranks)
    except (RecipeError, ValueError):
        return False
    return True
