import threading
from contextlib import contextmanager

import pytest
import torch

from offload.activations.disk_store import DiskStore
from offload.activations.engine import ActivationSwap
from offload.activations.records import SwapOptions
from offload.disk.files import DiskFailure
from offload.disk.tier import DiskTier
from tests.disks import files_up_to
from tests.offload.activations.small import EVERYTHING, MIB, mlp, open_swap


@contextmanager
def stuck_writes(folder):
    """A swap to a disk that takes no write until it is released."""
    gate = threading.Event()

    class Gated(DiskTier):
        def write(self, record, buffers):
            gate.wait()
            return super().write(record, buffers)

    tier = Gated([folder], capacity_bytes=MIB)
    swap = ActivationSwap(DiskStore(tier, closes_tier=True), EVERYTHING, device=torch.device("cpu"))
    try:
        yield swap, gate.set
    finally:
        gate.set()
        swap.close()


def test_what_has_not_left_is_handed_back(tmp_path):
    with stuck_writes(tmp_path) as (swap, release):
        x = torch.randn(64, 64, requires_grad=True) * 1.0
        with swap.saving():
            loss = x.square().sum()
        assert swap._out.in_flight_bytes == x.nbytes
        grad = torch.autograd.grad(loss, x)[0]
        assert torch.equal(grad, 2 * x)
        stats = swap.take_stats()
        assert (stats.forwarded_bytes, stats.fetched_bytes) == (x.nbytes, 0)
        release()


def test_memory_under_way_is_bounded(tmp_path):
    model, x = mlp(depth=8), torch.randn(64, 40)
    one_bytes = 64 * 120 * 4
    options = SwapOptions(
        min_bytes=1, max_in_flight_bytes=2 * one_bytes, prefetch_bytes=2 * one_bytes
    )
    with open_swap("disk", tmp_path, options) as swap:
        with swap.saving():
            model(x).square().sum().backward()
        stats = swap.take_stats()
    assert stats.in_flight_peak_bytes <= 3 * one_bytes
    assert 0 < stats.fetched_peak_bytes <= 3 * one_bytes


def test_a_failing_disk_is_named_and_the_tensors_stay(tmp_path):
    x = torch.randn(64, 64, requires_grad=True) * 1.0
    with open_swap("disk", tmp_path) as swap:
        with files_up_to(0):
            with swap.saving():
                loss = x.square().sum()
            with pytest.raises(DiskFailure, match=f"cannot write .* under {tmp_path}"):
                swap.drain()
        grad = torch.autograd.grad(loss, x)[0]
        assert torch.equal(grad, 2 * x)
        del loss
