"""Dense inside a host, compressed between hosts: two hosts of two ranks."""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from comms.compression.config import CompressionConfig
from comms.compression.exchange import Exchange
from comms.compression.two_level import inside_bytes, shard_numel
from comms.ledger import Ledger
from tests.ranks import run_on_ranks

NUMEL = 10_001


def _gradient(rank: int) -> torch.Tensor:
    return torch.randn(NUMEL, generator=torch.Generator().manual_seed(rank))


def _body(rank: int) -> dict[str, object]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("between", "inside"))
    found: dict[str, object] = {}
    for method in ("none", "quantized", "ef"):
        ledger = Ledger()
        exchange = Exchange(
            CompressionConfig(method=method, ratio=0.3, dense_steps=0),
            group=mesh.get_group("between"),
            inside=mesh.get_group("inside"),
            ledger=ledger,
        )
        flat = _gradient(rank)
        exchange.start("x", flat).wait()
        exchange.commit()
        found[method] = (flat, ledger.take()[0])
        kept = exchange.state_dict().get("x/residual")
        poisoned = _gradient(rank)
        if rank == 3:
            poisoned[9000] = torch.nan
        exchange.start("x", poisoned).wait()
        found[f"{method} poisoned"] = bool(poisoned.isnan().any())
        after = exchange.state_dict().get("x/residual")
        found[f"{method} kept"] = kept is None or torch.equal(kept, after)
        found["ranks"] = exchange.ranks
        exchange.close()
    dist.barrier()
    return found


def test_all_ranks_get_the_sum_of_all():
    results = run_on_ranks(4, _body)
    want = sum(_gradient(rank) for rank in range(4))
    for result in results:
        torch.testing.assert_close(result["none"][0], want, rtol=1e-5, atol=1e-5)
        for method in ("quantized", "ef"):
            assert torch.equal(result[method][0], results[0][method][0])
        assert (result["quantized"][0] - want).norm() < 0.02 * want.norm()
        for method in ("none", "quantized", "ef"):
            assert result[f"{method} poisoned"]
            assert result[f"{method} kept"]
        assert result["ranks"] == 4


def test_between_hosts_goes_a_share_of_the_bytes():
    sent = run_on_ranks(4, _body)[0]
    inside = inside_bytes(NUMEL, 2)
    assert shard_numel(NUMEL, 2) == 5001
    assert inside == {"reduce_scatter": 20_004, "all_gather": 20_004}
    for method in ("none", "quantized", "ef"):
        counts = sent[method][1]
        assert {n: b for n, b in counts.items() if n.startswith("replica_inside")} == {
            f"replica_inside/{name}": sent_bytes for name, sent_bytes in inside.items()
        }
    assert sent["none"][1]["replica/all_reduce"] == 4 * 5001
    assert sum(b for n, b in sent["quantized"][1].items() if n.startswith("replica/")) < 11_000
