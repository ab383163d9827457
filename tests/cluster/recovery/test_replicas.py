"""The guarantees of cluster/recovery/replicas.py."""

import pytest

from cluster.recovery.replicas import NOTICE_S, Pace, whole_generation
from trainer.keeping.header import Header


def test_links_carry_copies_for_no_more_than_their_share() -> None:
    pace, now_s, step, busy_s = Pace(share=0.05), 100.0, 10, 0.0
    began_s = now_s
    for seconds in (2.0, 0.1, 5.0, 1.0, 0.01) * 4:
        ahead = pace.next_step(step=step, now_s=now_s, steps_s=[0.5], every=1) - step
        assert ahead * 0.5 >= NOTICE_S
        now_s += ahead * 0.5
        step += ahead
        # The one before is paid for by now.
        assert busy_s <= 0.05 * (now_s - began_s) + 1e-9
        pace.copied(now_s, seconds)
        busy_s += seconds


def test_steps_are_those_of_which_there_are_snapshots() -> None:
    pace = Pace(share=0.03)
    for every in (1, 3, 10):
        wanted = pace.next_step(step=101, now_s=0.0, steps_s=[1.0, 1.0, 9.0], every=every)
        assert wanted % every == 0
        assert wanted >= 101 + NOTICE_S


def test_tries_that_fail_come_at_longer_and_longer_times() -> None:
    pace = Pace(share=0.5)
    waits = []
    for _ in range(9):
        pace.failed(10.0, 0.0)
        waits.append(pace.due_s - 10.0)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    pace.copied(10.0, 1.0)
    assert (pace.due_s, pace.failures) == (12.0, 0)


def share(rank: int, *, step: int = 5, generation: int = 2, ranks: int = 2) -> Header:
    return Header(
        sequence=2,
        run="ab" * 16,
        generation=generation,
        step=step,
        rank=rank,
        ranks=ranks,
        description_bytes=1,
        description_crc32=0,
        payload_begin=8192,
        payload_bytes=8,
        checksum=0,
    )


@pytest.mark.parametrize(
    ("headers", "whole"),
    [
        ([share(0), share(1)], 2),
        ([share(0)], None),
        ([share(0), share(0)], None),
        ([share(0), share(1, generation=1)], None),
        ([share(0), share(1, step=4)], None),
        ([share(0), share(1), share(0, generation=1, ranks=1)], 2),
    ],
)
def test_a_step_is_whole_with_shares_of_all_ranks_of_one_start(
    headers: list[Header], whole: int | None
) -> None:
    assert whole_generation([("", header) for header in headers], step=5) == whole


def test_a_step_of_islands_is_whole_with_those_of_all() -> None:
    first = [("island-0", share(0)), ("island-0", share(1))]
    assert whole_generation(first, step=5, islands=2) is None
    second = [("island-3", share(0)), ("island-3", share(1))]
    assert whole_generation(first + second, step=5, islands=2) == 2
    assert whole_generation(first + second[:1], step=5, islands=2) is None
    older = [("island-3", share(0, generation=1)), ("island-3", share(1, generation=1))]
    assert whole_generation(first + older, step=5, islands=2) is None
