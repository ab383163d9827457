"""The guarantees of cluster/watchdog/links.py."""

from itertools import permutations

from cluster.watchdog.config import WatchdogConfig
from cluster.watchdog.delays import Delays
from cluster.watchdog.links import measured_links, slow_links
from tests.cluster.watchdog.given import HOSTS, collective, reading

CONFIG = WatchdogConfig()
PAIRS = {f"{first}-{second}": (first, second) for first in range(4) for second in range(first)}


def found(usual_s, now_s, *, step_s=1.0, hosts=HOSTS, groups=PAIRS):
    """`now_s` gives the seconds of a communicator's transfers after a long healthy time."""
    delays = Delays(CONFIG.window_steps)
    for sequence in range(1, 61):
        readings = {}
        for rank in range(4):
            own = {name: ranks for name, ranks in groups.items() if rank in ranks}
            done = [
                collective(name, sequence, seconds=usual_s if sequence <= 40 else now_s(ranks))
                for name, ranks in own.items()
            ]
            readings[rank] = reading(rank, members=own, recent=done)
        delays.add(readings)
        delays.close_steps(1)
    return slow_links(delays, hosts, CONFIG, step=60, step_s=step_s)


def across(ranks):
    return HOSTS[ranks[0]] != HOSTS[ranks[1]]


def test_slow_pairs_between_two_hosts_are_the_link_of_the_hosts():
    (finding,) = found(0.02, lambda ranks: 0.2 if across(ranks) else 0.02)
    assert (finding.link, finding.cause) == (("a", "b"), "slow-link")
    assert finding.title == "communication slow"


def test_one_slow_pair_on_a_host_is_a_link_of_ranks():
    (finding,) = found(0.02, lambda ranks: 0.2 if set(ranks) == {0, 1} else 0.02)
    assert finding.link == ("rank 0", "rank 1")


def test_all_links_of_one_rank_are_its_end():
    (finding,) = found(0.02, lambda ranks: 0.2 if 3 in ranks else 0.02)
    assert (finding.rank, finding.host, finding.cause) == (3, "b", "slow-endpoint")


def test_all_links_of_one_host_of_three_are_its_end():
    hosts = {0: "a", 1: "b", 2: "c", 3: "d"}
    (finding,) = found(0.02, lambda ranks: 0.2 if 2 in ranks else 0.02, hosts=hosts)
    assert (finding.host, finding.cause) == ("c", "slow-endpoint")


def test_one_communicator_of_all_says_no_more_than_that_it_is_slow():
    hosts = {0: "a", 1: "b", 2: "c", 3: "d"}
    groups = {"world": (0, 1, 2, 3)}
    (finding,) = found(0.02, lambda ranks: 0.2, hosts=hosts, groups=groups)
    assert (finding.cause, finding.link, finding.host) == ("slow-communication", None, None)
    assert finding.confidence < 0.5


def test_twice_as_slow_or_not_worth_a_word_is_nothing():
    assert found(0.02, lambda ranks: 0.04) == []
    assert found(0.0002, lambda ranks: 0.002) == []


def test_measured_delays_tell_senders_from_receivers():
    pairs = list(permutations(range(4), 2))
    sender = {pair: 0.05 if pair[0] == 1 else 0.001 for pair in pairs}
    receiver = {pair: 0.05 if pair[1] == 1 else 0.001 for pair in pairs}
    hosts = {rank: f"host-{rank}" for rank in range(4)}
    (sends,) = measured_links(sender, hosts, CONFIG, step=3)
    (receives,) = measured_links(receiver, hosts, CONFIG, step=3)
    assert (sends.cause, sends.host) == ("slow-sender", "host-1")
    assert (receives.cause, receives.host) == ("slow-receiver", "host-1")
    assert measured_links(dict.fromkeys(pairs, 0.05), hosts, CONFIG, step=3) == []
