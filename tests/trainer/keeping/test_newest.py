"""Which state a restart goes on from, for every kind of loss."""

from trainer.keeping.newest import (
    Candidate,
    HeldShare,
    common_steps,
    in_order,
)


def _shares(generation, step, ranks, of, host="a"):
    """Shares of the ranks in `ranks` of a start with `of` ranks."""
    return [
        HeldShare(
            holder=0,
            host=host,
            path=f"{host}/{generation}/{rank}/{step}",
            generation=generation,
            step=step,
            rank=rank,
            ranks=of,
        )
        for rank in ranks
    ]


def _steps(shares):
    return [(common.generation, common.step) for common in common_steps(shares)]


def test_a_step_counts_only_with_the_share_of_every_rank():
    shares = _shares(1, 7, (0, 1), 2) + _shares(1, 8, (0,), 2)
    assert _steps(shares) == [(1, 7)]
    assert _steps(_shares(1, 8, (0,), 2)) == []
    assert _steps([]) == []


def test_shares_of_different_starts_and_sizes_do_not_mix():
    shares = _shares(1, 7, (0,), 2) + _shares(2, 7, (1,), 2) + _shares(1, 7, (1,), 3)
    assert _steps(shares) == []


def test_shares_may_be_on_different_hosts_and_several_times():
    shares = _shares(1, 7, (0,), 2, "a") + _shares(1, 7, (1, 0), 2, "b")
    (common,) = common_steps(shares)
    assert [[held.host for held in copies] for copies in common.shares] == [["a", "b"], ["b"]]


def test_a_lost_share_leads_to_the_step_before():
    shares = _shares(1, 7, (0, 1, 2), 3) + _shares(1, 8, (0, 1, 2), 3)
    assert _steps(shares) == [(1, 8), (1, 7)]
    damaged = [share for share in shares if (share.step, share.rank) != (8, 1)]
    assert _steps(damaged) == [(1, 7)]


def test_the_newest_start_counts_first_and_the_one_before_until_it_has_a_whole_step():
    before = _shares(1, 7, (0, 1), 2) + _shares(1, 8, (0, 1), 2)
    assert _steps(before + _shares(2, 9, (0,), 2)) == [(1, 8), (1, 7)]
    assert _steps(before + _shares(2, 9, (0, 1), 2)) == [(2, 9), (1, 8), (1, 7)]


def test_steps_that_a_later_start_went_back_behind_are_not_resumed():
    before = _shares(1, 7, (0,), 1) + _shares(1, 8, (0,), 1) + _shares(1, 5, (0,), 1)
    assert _steps(before + _shares(2, 6, (0,), 1)) == [(2, 6), (1, 5)]


def test_a_snapshot_older_than_the_newest_checkpoint_is_tried_after_it():
    memory, disk = "memory", "disk"
    assert in_order([9, 8], [5, 0]) == [
        Candidate(memory, 0),
        Candidate(memory, 1),
        Candidate(disk, 0),
        Candidate(disk, 1),
    ]
    assert [c.kind for c in in_order([7, 4], [8, 4])] == [disk, memory, memory, disk]
    assert in_order([], [3]) == [Candidate(disk, 0)]
    assert in_order([], []) == []
