import gc
import os

import pytest
import torch

from offload.activations.disk_store import DiskStore
from offload.activations.engine import ActivationSwap
from offload.activations.stores import HostStore
from offload.disk.files import DiskFailure
from offload.disk.tier import DiskTier
from tests.offload.activations.small import EVERYTHING, MIB


def test_a_disk_that_vanishes_is_named_and_leaves_no_half_state(tmp_path):
    tier = DiskTier([tmp_path], capacity_bytes=MIB)
    store = DiskStore(tier, closes_tier=True)
    swap = ActivationSwap(store, EVERYTHING, device=torch.device("cpu"))
    x = torch.randn(64, 64, requires_grad=True) * 1.0
    with swap.saving():
        loss = x.square().sum()
    swap.drain()

    def fail(loss):
        os.ftruncate(tier._files[0]._fd, 0)
        with pytest.raises(DiskFailure, match=f"scratch file under {tmp_path} ends at 0 bytes"):
            torch.autograd.grad(loss, x)

    fail(loss)
    del loss
    # The error and the frames that it passed hold each other, and these the graph.
    gc.collect()
    swap.drain()
    assert (swap.live_bytes, store.free_bytes) == (0, tier.free_bytes)
    with swap.saving():
        assert torch.equal(torch.autograd.grad(x.square().sum(), x)[0], 2 * x)
    swap.close()


def test_bytes_that_come_back_changed_are_found(tmp_path):
    store = HostStore(MIB, pin=False)
    swap = ActivationSwap(store, EVERYTHING, device=torch.device("cpu"))
    x = torch.randn(64, 64, requires_grad=True) * 1.0
    with swap.saving():
        loss = x.square().sum()
    swap.drain()
    store._slab_N[5] ^= 1
    with pytest.raises(RuntimeError, match="16384 bytes of activations came back changed"):
        loss.backward()
    swap.close()
