"""What comms/links/probe.py measures, on ranks of this machine."""

import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from comms.links.map import LinkMap
from comms.links.probe import measure_links
from tests.hosts.namespaces import ROOT, two_hosts, why_not
from tests.ranks import run_on_ranks

_PROGRAM = """
import sys
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


def _measured(rank: int) -> LinkMap:
    return measure_links(dist.new_group(backend="gloo"), budget_s=0.4, most_bytes=1 << 20)


def _refused(rank: int) -> str:
    with pytest.raises(ValueError, match="budget_s=0") as error:
        measure_links(dist.group.WORLD, budget_s=0)
    return str(error.value)


def test_all_ranks_get_one_map_of_real_rates():
    found = run_on_ranks(3, _measured)
    links = found[0]
    assert all(one == links for one in found)
    assert links.places == 3
    for a, b in links.links():
        assert links.latency_s[a][b] > 0
        assert 1e5 < links.bytes_per_s[a][b] < 1e12


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
        assert 40e6 < there < 110e6
        assert 8e6 < back < 22e6
