"""What comms/links/probe.py measures, on ranks of this machine."""

import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from cluster.drills.namespaces import why_not
from comms.links.map import LinkMap
from comms.links.probe import measure_links, next_bytes
from tests.hosts.namespaces import ROOT, two_hosts
from tests.ranks import run_on_ranks

_PROGRAM = """
import sys
import time
from comms.config import RankEnvironment
from comms.groups import join, leave
from comms.links.probe import measure_links
import torch.distributed as dist
rank = int(sys.argv[1])
join(
    RankEnvironment(
        rank=rank, world_size=2, local_rank=0, local_world_size=1, host=str(rank),
        master_address=sys.argv[2], master_port=29411,
    ),
    deadline_s=200,
)
links = measure_links(dist.group.WORLD, budget_s=2.0)
print(links.bytes_per_s[0][1], links.bytes_per_s[1][0])
leave()
"""


def _measured(rank: int) -> tuple[LinkMap, float]:
    group = dist.new_group(backend="gloo")
    begin_s = time.perf_counter()
    links = measure_links(group, budget_s=0.4, most_bytes=1 << 20)
    return links, time.perf_counter() - begin_s


def _refused(rank: int) -> str:
    with pytest.raises(ValueError, match="budget_s=0") as error:
        measure_links(dist.group.WORLD, budget_s=0)
    return str(error.value)


def test_all_ranks_get_one_map_of_real_rates_within_seconds():
    found = run_on_ranks(3, _measured)
    links = found[0][0]
    assert all(one == links for one, _ in found)
    assert links.places == 3
    for a, b in links.links():
        assert 0 < links.latency_s[a][b] < 1
        assert 1e5 < links.bytes_per_s[a][b] < 1e12
    assert all(seconds < 20 for _, seconds in found)


@pytest.mark.parametrize("burst", [0, 1 << 16])
@pytest.mark.parametrize("bytes_per_s", [1.25e5, 2.5e6, 1.25e9])
def test_messages_grow_to_the_time_there_is_and_little_beyond(burst: int, bytes_per_s: float):
    spent_s, size, most = 0.0, 1 << 15, 1 << 26
    while size:
        # The first bytes of a limited link pass at once; the bucket is empty afterwards.
        took_s = max(size - burst, 0) / bytes_per_s + 1e-6
        burst = max(burst - size, 0)
        spent_s += took_s
        largest, size = size, next_bytes(size, size / took_s * 0.25, most)
    assert spent_s < 2 * 0.25 + (1 << 17) / bytes_per_s
    assert largest == most or largest / bytes_per_s > 0.25 / 1.6


def test_a_budget_that_measures_nothing_is_refused():
    assert "must be above 0" in run_on_ranks(1, _refused)[0]


@pytest.mark.hosts
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_a_limited_link_is_measured_at_its_rate_in_each_direction(tmp_path: Path):
    with two_hosts() as hosts:
        hosts[0].limit("100mbit")
        hosts[1].limit("20mbit")
        started = []
        for rank, host in enumerate(hosts):
            words = [f"GLOO_SOCKET_IFNAME={host.device}", f"PYTHONPATH={ROOT}", sys.executable]
            command = ["env", *words, "-c", _PROGRAM, str(rank), hosts[0].address]
            started.append(host.popen(command, tmp_path / f"{rank}.log"))
        assert [process.wait(220) for process in started] == [0, 0]
    for rank in range(2):
        printed = (tmp_path / f"{rank}.log").read_text().split()
        there, back = (float(word) * 8 for word in printed[-2:])
        assert 60e6 < there < 110e6
        assert 12e6 < back < 22e6
