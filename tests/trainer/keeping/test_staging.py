"""Copies from a device: they are of the moment, although they come later."""

import pytest
import torch

from tests.trainer.keeping.shares import mixed_state, snapshots_of
from trainer.checkpoint.share import plan_share
from trainer.keeping.folder import check_share, list_shares
from trainer.keeping.pieces import place_pieces
from trainer.keeping.reading import OpenShare
from trainer.keeping.staging import DeviceStaging


def test_in_host_memory_nothing_is_copied():
    state = mixed_state(1)
    placed = place_pieces(plan_share(state, None))
    staging = DeviceStaging(placed)
    staging.begin(state)
    for source, place in zip(staging.host_sources(state), placed, strict=True):
        assert source.data_ptr() == state[place.piece.name].data_ptr()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_device_may_go_on_after_settling(tmp_path):
    device = torch.device("cuda")
    state = {name: tensor.to(device) for name, tensor in mixed_state(1).items()}
    state["counts"] = mixed_state(1)["counts"]  # some states may be in host memory
    snapshots = snapshots_of(tmp_path, state)
    busy = torch.randn(4096, 4096, device=device)
    for step in (1, 2, 3):
        for name, tensor in mixed_state(step).items():
            state[name].copy_(tensor)
        for _ in range(20):
            busy = busy @ busy / 4096  # the copies are queued behind work that takes a while
        state["large"].add_(1.0)
        snapshots.capture(step, state, {"step": step})
        snapshots.settle()
        for tensor in state.values():
            tensor.zero_()
    snapshots.close()
    assert snapshots.failure is None
    newest = max(list_shares(tmp_path), key=lambda found: found.header.step)
    share = OpenShare(newest.path, check_share(newest.path))
    wanted = mixed_state(3)
    wanted["large"] += 1.0
    assert all(torch.equal(share.block(name), wanted[name]) for name in wanted if name != "nothing")
