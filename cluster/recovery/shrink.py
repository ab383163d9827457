"""With how many ranks a run can go on, and what of its layout gives way. Pure decisions.

Guarantees, each asserted in tests/cluster/recovery/test_shrink.py:
- the global batch stays;
- as many ranks go on as can be laid out;
- whole islands give way first, of which those that lost nothing go on; then copies (`replica`),
  then how finely states are cut (`shard`); what cuts the model itself stays as the recipe has it.
"""

from collections.abc import Collection, Iterator
from dataclasses import replace

from trainer.config import JobConfig
from trainer.errors import RecipeError
from trainer.planner.batch import batch_of
from trainer.spread import require_layout


def largest_job(
    job: JobConfig, *, at_most: int, at_least: int, island_ranks: int = 0
) -> tuple[JobConfig, int] | None:
    """The job as the most ranks from `at_least` to `at_most` can run it, and their number. Several
    islands keep their `island_ranks` while one of them is left."""
    islands = job.parallel.island
    if islands > 1 and island_ranks:
        for count in range(min(islands, at_most // island_ranks), 0, -1):
            fewer = _of_islands(job, count)
            ranks = count * island_ranks
            if ranks >= at_least and _possible(fewer, ranks):
                return fewer, ranks
        job = _of_islands(job, 1)
    for ranks in range(at_most, at_least - 1, -1):
        for candidate in _variants(job):
            if _possible(candidate, ranks):
                return candidate, ranks
    return None


def islands_left(
    total: int,
    before: Collection[int],
    *,
    without_host: Collection[int],
    broken: Collection[int],
    count: int,
) -> tuple[int, ...]:
    """Which `count` of `total` islands go on, in their order: rather those that went on `before`
    and have their hosts, and with them their snapshots; of these, rather one that is not `broken`.
    """

    def loss(number: int) -> tuple[bool, bool]:
        return number not in before or number in without_host, number in broken

    return tuple(sorted(sorted(range(total), key=loss)[:count]))


def _of_islands(job: JobConfig, count: int) -> JobConfig:
    """With so many islands. Fewer have equal shares until it is settled which they are."""
    if count == job.parallel.island:
        return job
    island = job.comms.island.only(())
    comms = replace(job.comms, island=island)
    return replace(job, parallel=replace(job.parallel, island=count), comms=comms)


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
