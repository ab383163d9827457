"""Bytes as the network device between two hosts counts them, against those of the ledger."""

import json
import sys
from pathlib import Path

from tests.hosts.namespaces import NEEDS_HOSTS, ROOT, two_hosts

pytestmark = NEEDS_HOSTS

NUMEL = 1_000_000
STEPS = 3
METHODS = {
    "none": {"method": "none"},
    "dgc": {"method": "dgc", "momentum": 0.9},
    "econtrol": {"method": "econtrol", "ratio": 0.01},
    "powersgd": {"method": "powersgd", "rank": 4},
    "int8": {"method": "quantized"},
    "fp4": {"method": "quantized", "block_format": "fp4"},
}

RANK = """
import json, sys
from pathlib import Path
import torch, torch.distributed as dist
from comms.compression.config import CompressionConfig
from comms.compression.exchange import Exchange
from comms.config import RankEnvironment
from comms.groups import join, leave
from comms.ledger import Ledger

rank, address, device, numel, steps = int(sys.argv[1]), *sys.argv[2:4], *map(int, sys.argv[4:6])
torch.set_num_threads(1)
torch.manual_seed(rank)
join(RankEnvironment(rank=rank, world_size=2, local_rank=0, local_world_size=1, host=str(rank),
                     master_address=address, master_port=29411), deadline_s=200)
counter = Path(f"/sys/class/net/{device}/statistics/tx_bytes")
found = {}
for name, settings in json.loads(sys.argv[6]).items():
    ledger = Ledger()
    exchange = Exchange(CompressionConfig(**settings), group=dist.group.WORLD, ledger=ledger,
                        background=False)
    for _ in range(2):
        exchange.start("x", torch.randn(numel)).wait()
    ledger.take()
    dist.barrier()
    before = int(counter.read_text())
    for _ in range(steps):
        exchange.start("x", torch.randn(numel)).wait()
    dist.barrier()
    found[name] = [int(counter.read_text()) - before, sum(ledger.take()[0].values())]
print(json.dumps(found))
leave()
"""


def _run(folder: Path) -> dict[str, tuple[int, int]]:
    with two_hosts() as hosts:
        started = []
        for rank, host in enumerate(hosts):
            words = [str(rank), hosts[0].address, host.device, str(NUMEL), str(STEPS)]
            environment = [f"GLOO_SOCKET_IFNAME={host.device}", f"PYTHONPATH={ROOT}"]
            command = [sys.executable, "-c", RANK, *words, json.dumps(METHODS)]
            started.append(host.popen(["env", *environment, *command], folder / f"{rank}.log"))
        for rank, process in enumerate(started):
            assert process.wait(220) == 0, (folder / f"{rank}.log").read_text()
    found: dict[str, tuple[int, int]] = json.loads((folder / "0.log").read_text().splitlines()[-1])
    return found


def test_what_is_counted_is_what_travels(tmp_path):
    found = _run(tmp_path)
    for name, (at_device, counted) in found.items():
        # Headers of frames, acknowledgements and gloo's own messages come on top.
        assert counted <= at_device <= 1.06 * counted + 30_000, (name, at_device, counted)
    dense = found["none"][0]
    assert dense / found["dgc"][0] > 270
    assert dense / found["econtrol"][0] > 100
    assert dense / found["fp4"][0] > 6.5
