"""The guarantees of cluster/recovery/roster.py."""

import pytest

from cluster.recovery.roster import Member, Roster, first_roster, next_roster

ADDRESSES = {"head": "10.0.0.200", "b": "10.0.0.9", "c": "10.0.0.10"}


def member(number: int, host: str, bundle: int | None = None) -> Member:
    return Member(
        number=number,
        bundle=number if bundle is None else bundle,
        node_id=host,
        host=host,
        address=ADDRESSES[host],
        is_head=host == "head",
    )


SIX = [member(n, host) for n, host in enumerate(("b", "head", "c", "b", "head", "c"))]


def numbers(roster: Roster) -> list[int]:
    return [m.number for m in roster.members]


def test_head_first_then_by_address_and_neighbours_on_a_node() -> None:
    assert numbers(first_roster(SIX, 6)) == [1, 4, 0, 3, 2, 5]
    assert numbers(first_roster(list(reversed(SIX)), 6)) == [1, 4, 0, 3, 2, 5]


def test_local_ranks_count_from_zero_on_every_node() -> None:
    places = first_roster(SIX[:3] + SIX[3:4], 4).places()
    assert [(p.rank, p.host, p.local_rank, p.local_world_size) for p in places] == [
        (0, "head", 0, 1),
        (1, "b", 0, 2),
        (2, "b", 1, 2),
        (3, "c", 0, 1),
    ]


def test_who_is_left_over_is_a_spare() -> None:
    assert numbers(first_roster(SIX, 4)) == [1, 4, 0, 3]


def test_a_new_process_takes_the_rank_that_its_node_lost() -> None:
    before = first_roster(SIX, 6)
    alive = [m for m in SIX if m.number not in (3, 1)]
    new = [member(6, "b", 3), member(7, "head", 1)]
    assert numbers(next_roster(alive + new, before, 6)) == [7, 4, 0, 6, 2, 5]


def test_a_process_elsewhere_takes_it_and_nodes_stay_together() -> None:
    before = first_roster(SIX, 6)
    spare = member(6, "c")
    after = next_roster([m for m in SIX if m.number != 4] + [spare], before, 6)
    assert numbers(after) == [1, 6, 2, 5, 0, 3]
    hosts = [m.host for m in after.members]
    assert hosts == ["head", "c", "c", "c", "b", "b"]


def test_with_fewer_ranks_those_who_had_ranks_go_first() -> None:
    before = first_roster(SIX, 6)
    without_c = [m for m in SIX if m.host != "c"]
    assert numbers(next_roster([*without_c, member(9, "head")], before, 4)) == [1, 4, 0, 3]


def test_nobody_moves_where_nobody_is_lost() -> None:
    before = first_roster(SIX, 6)
    assert next_roster(list(reversed(SIX)), before, 6) == before


def test_too_few_processes_are_refused() -> None:
    with pytest.raises(ValueError, match="7 ranks need as many processes, got 6"):
        next_roster(SIX, None, 7)
