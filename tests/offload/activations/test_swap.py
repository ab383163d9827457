import gc
import os
import threading

import pytest
import torch

from offload.activations.records import SwapOptions
from offload.activations.stores import HostStore
from offload.activations.swap import open_disk_swap, swap_activations
from offload.disk.files import DiskFailure
from offload.host_tensors import PinningRefused
from tests.offload.activations.small import MIB, mlp, same_bits, train

ALL = SwapOptions(min_bytes=1)


def open_things():
    gc.collect()
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


def test_two_lines_around_any_forward(tmp_path):
    reference, model, x = mlp(), mlp(), torch.randn(70, 40)
    expected = train(reference, lambda: reference(x).square().sum())

    def loss():
        with swap_activations(disk=[tmp_path], capacity_bytes=8 * MIB, options=ALL):
            return model(x).square().sum()

    before = open_things()
    assert same_bits(train(model, loss), expected)
    assert open_things() == before
    assert list(tmp_path.iterdir()) == []


def test_a_swap_of_ones_own_serves_every_step(tmp_path):
    reference, model, x = mlp(), mlp(), torch.randn(70, 40)
    expected = train(reference, lambda: reference(x).square().sum())
    swap = open_disk_swap([tmp_path], capacity_bytes=8 * MIB, options=ALL)

    def loss():
        with swap_activations(swap) as used:
            assert used is swap
            return model(x).square().sum()

    assert same_bits(train(model, loss), expected)
    assert swap.take_stats().stored_bytes > 0
    swap.close()


def test_it_stays_open_as_long_as_a_graph_needs_it(tmp_path):
    before = open_things()
    with swap_activations(disk=[tmp_path], capacity_bytes=8 * MIB, options=ALL):
        loss = mlp()(torch.randn(70, 40)).square().sum()
    assert open_things() != before
    loss.backward()
    del loss
    assert open_things() == before


def test_nesting_is_refused_and_the_outer_one_goes_on(tmp_path):
    model, x = mlp(), torch.randn(70, 40)
    with swap_activations(disk=[tmp_path], capacity_bytes=8 * MIB, options=ALL) as swap:
        with pytest.raises(RuntimeError, match="cannot be nested"), swap_activations(swap):
            pass
        model(x).square().sum().backward()
        assert swap.take_stats().stored_bytes > 0


def test_an_exception_inside_leaves_nothing(tmp_path):
    before = open_things()

    def failing():
        with swap_activations(disk=[tmp_path], capacity_bytes=8 * MIB, options=ALL):
            mlp()(torch.randn(70, 40)).square().sum()
            raise KeyError("planted")

    with pytest.raises(KeyError, match="planted"):
        failing()
    assert open_things() == before


def test_a_disk_that_cannot_hold_it_is_refused_at_once(tmp_path):
    before = open_things()
    with pytest.raises(DiskFailure, match=f"cannot preallocate .* under {tmp_path}.*are free"):
        open_disk_swap([tmp_path], capacity_bytes=1 << 50)
    assert open_things() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device to swap from")
def test_without_a_device_a_directory_is_asked_for():
    refused = pytest.raises(ValueError, match="name directories on a local disk")
    with refused, swap_activations():
        pass
    with pytest.raises(PinningRefused, match="needs a CUDA device"):
        HostStore(MIB, pin=True)
