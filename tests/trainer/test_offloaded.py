"""States outside the device: the same bits, names and gradients as beside the weights."""

from contextlib import closing

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from comms.buckets import GradientBuckets
from comms.ledger import Ledger
from offload.disk.tier import DiskTier
from tests.disks import files_up_to
from tests.ranks import run_on_ranks
from trainer.checkpoint.boxes import boxes_of
from trainer.config import OptimConfig
from trainer.errors import InfrastructureError
from trainer.offloaded import OffloadedAdamW
from trainer.optim import DeviceAdamW
from trainer.state_plan import StateOptions

CONFIG = OptimConfig(weight_decay=0.1)
IN_MEMORY = StateOptions(placement="host", share=0.0, subgroup_parameters=1024)
ON_DISK = StateOptions(
    placement="disk", share=0.0, subgroup_parameters=1024, disk_share=1.0, buffers=2
)


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(37, 61), nn.LayerNorm(61), nn.Linear(61, 53))


def _tier(folder) -> DiskTier:
    return DiskTier([folder / "a", folder / "b"], capacity_bytes=1 << 20, stripe_bytes=16384)


def _buckets(model: nn.Module) -> GradientBuckets:
    return GradientBuckets(list(model.parameters()), group=None, bucket_bytes=4096, ledger=Ledger())


def _train(model, optimizer, gradients, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        gradients.start_round(last=True)
        model(torch.randn(8, 37, generator=generator)).square().sum().backward()
        gradients.finish()
        optimizer.update(0.01 / (step + 1), grad_scale=0.3 if step % 2 else 1.0, share=None)
        gradients.zero()


def _weights(model):
    return [p.detach().clone() for p in model.parameters()]


@pytest.fixture(scope="module")
def wanted():
    """Weights and moments of six steps beside the weights."""
    model = _model()
    optimizer = DeviceAdamW(model, CONFIG)
    _train(model, optimizer, _buckets(model), range(6))
    return _weights(model), {n: t.clone() for n, t in optimizer.moments().items()}


@pytest.mark.parametrize("options", [IN_MEMORY, ON_DISK], ids=["memory", "disk"])
def test_bits_names_and_movement(tmp_path, wanted, options):
    model = _model()
    tier = _tier(tmp_path) if options.disk_share else None
    with closing(OffloadedAdamW(model, CONFIG, options, tier)) as optimizer:
        gradients = _buckets(model)
        owned = [p.grad for p in model.parameters()]
        assert (optimizer.updates, optimizer.movement) == (0, None)
        _train(model, optimizer, gradients, range(6))
        assert all(p.grad is grad for p, grad in zip(model.parameters(), owned, strict=True))
        for ours, theirs in zip(_weights(model), wanted[0], strict=True):
            assert torch.equal(ours, theirs)
        moments = optimizer.moments()
        assert moments.keys() == wanted[1].keys()
        assert all(torch.equal(moments[name], tensor) for name, tensor in wanted[1].items())
        assert optimizer.updates == 6
        moved = optimizer.movement
    assert moved is not None
    assert 0.0 <= moved.hidden <= 1.0
    assert (moved.moved_bytes["disk_written"] > 0) == (options is ON_DISK)
    assert moved.moved_bytes["fetched"] == moved.moved_bytes["flushed"] == 0


@pytest.mark.parametrize("options", [IN_MEMORY, ON_DISK], ids=["memory", "disk"])
def test_either_goes_on_from_the_other(tmp_path, wanted, options):
    def build(model, outside):
        if not outside:
            return DeviceAdamW(model, CONFIG)
        return OffloadedAdamW(
            model, CONFIG, options, _tier(tmp_path) if options.disk_share else None
        )

    for outside_first in (True, False):
        model, resumed = _model(), _model()
        first, second = build(model, outside_first), build(resumed, not outside_first)
        _train(model, first, _buckets(model), range(3))
        gradients = _buckets(resumed)
        owned = [p.grad for p in resumed.parameters()]
        resumed.load_state_dict(model.state_dict())
        filled = second.moments_to_fill()
        for name, tensor in first.moments().items():
            filled[name].copy_(tensor)
        second.restored(filled, first.updates)
        assert second.updates == 3
        assert all(p.grad is grad for p, grad in zip(resumed.parameters(), owned, strict=True))
        _train(resumed, second, gradients, range(3, 6))
        for ours, theirs in zip(_weights(resumed), wanted[0], strict=True):
            assert torch.equal(ours, theirs)
        first.close()
        second.close()


def test_a_disk_that_fails_ends_the_run_with_the_weights_of_the_step_before(tmp_path):
    model, tier = _model(), _tier(tmp_path)
    optimizer = OffloadedAdamW(model, CONFIG, ON_DISK, tier)
    gradients = _buckets(model)
    _train(model, optimizer, gradients, range(2))
    before = _weights(model)
    with (
        files_up_to(0),
        pytest.raises(InfrastructureError, match="an update could not move optimizer states"),
    ):
        _train(model, optimizer, gradients, [2])
    assert all(torch.equal(a, b) for a, b in zip(_weights(model), before, strict=True))
    optimizer.close()


def _sharded(rank):
    mesh = init_device_mesh("cpu", (2,))
    found = []
    for outside in (False, True):
        model = _model()
        fully_shard(model, mesh=mesh)
        optimizer = (
            OffloadedAdamW(model, CONFIG, IN_MEMORY, None)
            if outside
            else DeviceAdamW(model, CONFIG)
        )
        for step in range(3):
            generator = torch.Generator().manual_seed(10 * step + rank)
            model(torch.randn(4, 37, generator=generator)).square().sum().backward()
            optimizer.update(0.01, grad_scale=0.3, share=None)
            model.zero_grad()
        moments, blank = optimizer.moments(), optimizer.moments_to_fill()
        boxes = {name: boxes_of(tensor) for name, tensor in moments.items()}
        assert boxes == {name: boxes_of(tensor) for name, tensor in blank.items()}
        assert all(isinstance(tensor, DTensor) for tensor in [*moments.values(), *blank.values()])
        tensors = {**moments, **dict(model.named_parameters())}
        found.append((boxes, {n: t.to_local().detach() for n, t in tensors.items()}))
        optimizer.close()
    (boxes, tensors), (other_boxes, other_tensors) = found
    same = all(torch.equal(tensors[name], other_tensors[name]) for name in tensors)
    return same and boxes == other_boxes and tensors.keys() == other_tensors.keys()


def test_shards_keep_their_boxes_and_bits():
    assert run_on_ranks(2, _sharded) == [True, True]
