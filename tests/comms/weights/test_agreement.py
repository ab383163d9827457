"""The guarantees of comms/weights/agreement.py, with ranks as threads on one store."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from comms.weights.agreement import Agreement, Deadline, Problem, WeightTransferError

NAMES = ("a", "b", "c", "d")


def settle(words: dict[int, Problem | None], *, deadline_s: float) -> dict[int, object]:
    """What each rank that speaks gets: None, or its error; and how long it took."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    together = threading.Barrier(len(words))

    def one(rank: int) -> object:
        store = dist.TCPStore(
            "127.0.0.1", server.port, is_master=False, timeout=timedelta(seconds=10)
        )
        agreement = Agreement(store, rank=rank, names=NAMES, grace_s=0.4)
        together.wait()
        started_s = time.monotonic()
        try:
            agreement.settle("x", words[rank], Deadline(deadline_s), what="it failed")
        except WeightTransferError as error:
            return error, time.monotonic() - started_s
        return None

    with ThreadPoolExecutor(len(words)) as pool:
        found = dict(zip(words, pool.map(one, words), strict=True))
    return found


def test_all_agree_where_all_say_yes():
    found = settle(dict.fromkeys(range(4)), deadline_s=10)
    assert found == dict.fromkeys(range(4))


def test_one_no_is_everybodys_and_names_its_rank():
    found = settle({0: None, 1: None, 2: Problem("disk full", blames=2), 3: None}, deadline_s=10)
    for error, seconds in found.values():
        assert str(error) == "it failed: c says: disk full"
        assert (error.culprits, error.reasons) == ((2,), {2: "disk full"})
        assert seconds < 5, "nobody waits for the deadline"


def test_whoever_failed_by_itself_is_named_before_those_that_lost_it():
    words = {
        0: None,
        1: Problem("lost rank 2", blames=2),
        2: Problem("no memory", blames=2),
        3: None,
    }
    for error, _ in settle(words, deadline_s=10).values():
        assert error.culprits == (2,)
        assert str(error) == "it failed: c says: no memory (b: lost rank 2)"
    words = {0: None, 1: Problem("lost rank 3", blames=3), 2: None, 3: None}
    for error, _ in settle(words, deadline_s=10).values():
        assert error.culprits == (3,)
        assert str(error) == "it failed: d is at fault (b: lost rank 3)"


def test_silence_is_a_no_at_the_deadline():
    for missing in (0, 3):
        found = settle({r: None for r in range(4) if r != missing}, deadline_s=1.0)
        for error, seconds in found.values():
            assert error.culprits == (missing,)
            assert f"{NAMES[missing]} said nothing" in str(error)
            assert seconds < 1.0 + 0.4 + 10


def test_a_late_yes_reads_the_decision_that_stands():
    server = dist.HashStore()
    server.set("x/decision", '{"text": "not all answered within 1 s"}')
    for rank in range(4):
        server.set(f"x/{rank}", "{}")
    late = Agreement(server, rank=0, names=NAMES, grace_s=0.1)
    with pytest.raises(WeightTransferError, match="it failed: not all answered within 1 s"):
        late.settle("x", None, Deadline(1), what="it failed")


def test_the_first_to_refuse_says_who_is_at_fault():
    server = dist.HashStore()
    ranks = [Agreement(server, rank=rank, names=NAMES, grace_s=0.1) for rank in range(4)]
    damaged, lost = Problem("damaged", blames=1), Problem("lost rank 3", blames=3)
    ranks[3].refuse("x", damaged)
    ranks[1].refuse("x", lost)
    for rank, problem in ((0, None), (1, lost), (2, lost), (3, damaged)):
        with pytest.raises(WeightTransferError) as caught:
            ranks[rank].settle("x", problem, Deadline(1), what="it failed")
    assert caught.value.culprits == (1,)


class SlowToDecide:
    """A store whose client is held up whenever it is about to decide."""

    def __init__(self, store: dist.Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        time.sleep(0.2)
        return self._store.compare_set(key, expected, desired)


def test_a_no_counts_however_long_its_rank_is_held_up():
    store = dist.HashStore()
    slow = Agreement(SlowToDecide(store), rank=1, names=NAMES[:2])
    first = Agreement(store, rank=0, names=NAMES[:2])
    problem = Problem("disk full", blames=1)

    def refused(agreement: Agreement, problem: Problem | None) -> tuple[int, ...]:
        with pytest.raises(WeightTransferError, match="b says: disk full") as caught:
            agreement.settle("x", problem, Deadline(10), what="it failed")
        return caught.value.culprits

    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(refused, slow, problem), pool.submit(refused, first, None)]
        assert [one.result() for one in found] == [(1,), (1,)]
