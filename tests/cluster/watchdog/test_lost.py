"""The guarantees of cluster/watchdog/lost.py."""

import pytest

from cluster.watchdog.lost import losses
from tests.cluster.watchdog.given import collective, evidence, reading

RANKS = [reading(rank) for rank in range(4)]


@pytest.mark.parametrize("state", ["gone", "zombie"])
def test_a_process_that_is_gone_is_named_with_its_last_words(state):
    dying = reading(2, pending=[collective(sequence=8)])
    seen = evidence(*RANKS[:2], dying, RANKS[3], process={2: state})
    (finding,) = losses(seen, silence_s=4.0)
    assert (finding.rank, finding.host, finding.cause) == (2, "b", "process-gone")
    assert (finding.phase, finding.step) == ("backward", 7)
    assert "all_reduce 8" in str(finding)


def test_a_rank_that_is_done_may_go():
    seen = evidence(reading(0, phase="done"), process={0: "gone"})
    assert losses(seen, silence_s=4.0) == []


def test_a_host_is_lost_when_all_its_ranks_are_silent():
    seen = evidence(*RANKS, silent_s={2: 4.5, 3: 6.0})
    (finding,) = losses(seen, silence_s=4.0)
    assert (finding.host, finding.rank, finding.cause) == ("b", None, "host-silent")
    assert "[2, 3]" in str(finding)


def test_one_silent_rank_of_a_host_is_named_alone():
    (finding,) = losses(evidence(*RANKS, silent_s={3: 4.5}), silence_s=4.0)
    assert (finding.rank, finding.cause) == (3, "rank-silent")


def test_silence_everywhere_is_the_observers_own_trouble():
    seen = evidence(*RANKS, silent_s=dict.fromkeys(range(4), 9.0))
    (finding,) = losses(seen, silence_s=4.0)
    assert (finding.cause, finding.host) == ("all-silent", None)


def test_short_silence_is_nothing():
    assert losses(evidence(*RANKS, silent_s=dict.fromkeys(range(4), 3.9)), silence_s=4.0) == []
