"""Counts add up, and start again once taken."""

from comms.ledger import Ledger
from comms.volume import all_reduce_bytes, gather_bytes


def test_counts_add_up_and_are_taken_once():
    ticks = iter([1.0, 1.5, 4.0, 4.25])
    ledger = Ledger(clock=lambda: next(ticks))
    ledger.sent("shard", "all_gather", 10)
    ledger.sent("shard", "all_gather", 5)
    for _ in range(2):
        with ledger.waiting():
            pass
    assert ledger.waited_s == 0.75
    assert ledger.take() == ({"shard/all_gather": 15}, 0.75)
    assert ledger.take() == ({}, 0.0)


def test_volumes_are_those_of_ring_algorithms():
    assert all_reduce_bytes(1000, 4) == 1500
    assert gather_bytes(1000, 4) == 750
    assert all_reduce_bytes(1000, 1) == gather_bytes(1000, 1) == 0
