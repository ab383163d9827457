"""Which number of ranks goes on where others may have the places of some."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from cluster.beside import Wish
from cluster.recovery.roster import Member, Roster
from cluster.sharing import Sharing
from trainer.config import JobConfig


def member(number: int, bundle: int) -> Member:
    return Member(number=number, bundle=bundle, node_id="n", host="h", address="a", is_head=True)


@dataclass
class Processes:
    """A crew and its staffing, without processes."""

    ready: list[Member]
    starting: list[Member] = field(default_factory=list)
    places: set[int] = field(default_factory=lambda: {0, 1})
    needs: Any = field(default_factory=lambda: SimpleNamespace(workers=2))
    looks: int = 0

    def take_place(self, bundle: int) -> None:
        self.places.add(bundle)

    def leave_place(self, bundle: int) -> None:
        self.places.discard(bundle)

    def dismiss(self, gone: Member) -> None:
        self.ready = [m for m in self.ready if m != gone]
        self.starting = [m for m in self.starting if m != gone]

    def refill(self, *, lost_too: bool) -> None:
        self.looks += 1

    def grow(self, *, ranks: int, wanted: int, rest_s: float) -> int:
        return min(wanted, len(self.ready))


@dataclass
class Wishing:
    wishes: list[Wish]
    told: list[tuple[tuple[int, ...], str]] = field(default_factory=list)

    def wish(self) -> Wish | None:
        return self.wishes.pop(0) if self.wishes else None

    def given(self, bundles: Sequence[int], refused: str) -> None:
        self.told.append((tuple(bundles), refused))


class Setting:
    def __init__(self, *wishes: Wish) -> None:
        self.now_s = 0.0
        self.processes = Processes([member(0, 0), member(1, 1)])
        self.beside = Wishing(list(wishes))
        made: Any = (self.processes, self.processes, self.beside)
        self.sharing = Sharing(*made, starting_s=30.0, clock=lambda: self.now_s)
        self.sharing.listen()

    def others_ready(self) -> bool:
        return self.sharing.others_ready(2, JobConfig, rest_s=1e9)


def test_fewer_go_on_at_once_and_leave_their_places() -> None:
    setting = Setting(Wish(ranks=1))
    assert setting.others_ready()
    setting.sharing.settle(Roster(members=(member(0, 0),)))
    assert setting.beside.told == [((1,), "")]
    assert setting.processes.places == {0}
    assert [m.number for m in setting.processes.ready] == [0]
    assert not setting.others_ready()


def test_more_go_on_once_they_are_ready() -> None:
    setting = Setting(Wish(ranks=3, bundles=(2,)))
    assert setting.processes.places == {0, 1, 2}
    assert not setting.others_ready()
    assert setting.processes.looks == 1
    # A fault meanwhile changes nothing of what is wished.
    setting.sharing.settle(Roster(members=(member(0, 0), member(1, 1))))
    setting.processes.ready.append(member(2, 2))
    assert setting.others_ready()
    setting.sharing.settle(Roster(members=tuple(setting.processes.ready)))
    assert (setting.sharing.wanted, len(setting.processes.ready)) == (3, 3)
    assert setting.beside.told == [((), "")]


def test_ranks_that_do_not_come_in_time_are_given_up_with_their_places() -> None:
    setting = Setting(Wish(ranks=4, bundles=(2, 3)))
    setting.processes.ready.append(member(2, 2))
    setting.processes.starting.append(member(3, 3))
    setting.now_s = 31.0
    assert not setting.others_ready()
    ((bundles, refused),) = setting.beside.told
    assert bundles == (2, 3)
    assert "1 of 4 ranks were not ready after 30 s" in refused
    assert setting.processes.places == {0, 1}
    assert [m.number for m in setting.processes.ready] == [0, 1]
    assert (setting.processes.starting, setting.sharing.wanted) == ([], 2)


def test_a_rank_that_trains_in_a_wished_place_after_a_fault_stays_there() -> None:
    setting = Setting(Wish(ranks=4, bundles=(2, 3)))
    # One of two is lost for good, and one that is new has its rank.
    setting.processes.ready = [member(0, 0), member(2, 2)]
    setting.sharing.settle(Roster(members=tuple(setting.processes.ready)))
    setting.now_s = 31.0
    assert not setting.others_ready()
    assert [m.number for m in setting.processes.ready] == [0, 2]
    assert setting.processes.places == {0, 1, 2}
    assert setting.beside.told[0][0] == (3,)
    assert setting.sharing.wanted == 2


def test_what_a_refused_wish_leaves_is_what_was_wanted_before() -> None:
    setting = Setting(Wish(ranks=4, bundles=(2, 3)))
    setting.processes.ready = [member(0, 0)]
    setting.sharing.settle(Roster(members=(member(0, 0),)))
    setting.now_s = 31.0
    assert not setting.others_ready()
    assert setting.sharing.wanted == 2


def test_without_a_wish_nothing_changes() -> None:
    setting = Setting()
    assert not setting.others_ready()
    setting.sharing.settle(Roster(members=(member(0, 0),)))
    assert setting.beside.told == []
