import gc

import pytest
import torch
from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from offload.activations.amount import first_kept
from offload.activations.engine import ActivationSwap
from offload.activations.records import SwapOptions
from offload.activations.stores import HostStore
from tests.offload.activations.small import EVERYTHING, MIB, mlp, open_swap, same_bits, train

TIERS = ["host", "disk"]


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_are_those_without_it(tmp_path, tier, dtype):
    model, x = mlp().to(dtype), torch.randn(67, 40, dtype=dtype)
    reference = mlp().to(dtype)
    expected = train(reference, lambda: reference(x).square().sum())

    with open_swap(tier, tmp_path) as swap:

        def loss():
            with swap.saving():
                return model(x).square().sum()

        assert same_bits(train(model, loss), expected)
        stats = swap.take_stats()
        assert stats.stored_bytes > 0
        assert stats.fetched_bytes + stats.forwarded_bytes == stats.stored_bytes


@pytest.mark.parametrize("tier", TIERS)
def test_a_checkpoint_inside_changes_nothing(tmp_path, tier):
    x = torch.randn(33, 40)

    def run(model):
        h = model[0](x)
        h = checkpoint(model[1], h, use_reentrant=False)
        return model[3](checkpoint(model[2], h, use_reentrant=False)).square().sum()

    reference, model = mlp(), mlp()
    expected = train(reference, lambda: run(reference))
    with open_swap(tier, tmp_path) as swap:

        def loss():
            with swap.saving():
                return run(model)

        assert same_bits(train(model, loss), expected)


def test_backward_may_run_inside_and_twice(tmp_path):
    model, x = mlp(), torch.randn(20, 40)
    with open_swap("disk", tmp_path) as swap:
        with swap.saving():
            loss = model(x).square().sum()
            first = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
            second = torch.autograd.grad(loss, list(model.parameters()))
        del loss
        assert same_bits(list(first), list(second))


def test_several_forwards_before_their_backwards(tmp_path):
    model, x = mlp(), torch.randn(2, 20, 40)
    expected = train(reference := mlp(), lambda: sum(reference(row).square().sum() for row in x))
    with open_swap("disk", tmp_path) as swap:

        def loss():
            with swap.saving():
                return sum(model(row).square().sum() for row in x)

        assert same_bits(train(model, loss), expected)


def test_a_storage_is_stored_once_and_weights_never(tmp_path):
    weight = nn.Parameter(torch.randn(64, 64))
    x = torch.randn(64, 64, requires_grad=True) * 1.0
    with open_swap("host", tmp_path) as swap:
        with swap.saving():
            # Saved: x, its transpose and a part of it, one storage; the weight and a view of it.
            loss = ((x @ weight) + (x.t() @ weight.t())).sum() + x[3:9].square().sum()
        assert swap.take_stats().stored_bytes == x.nbytes
        loss.backward()
        del loss
    assert weight.grad is not None


@pytest.mark.parametrize("leaves", [True, False], ids=["swapped", "kept"])
def test_a_change_in_place_is_found(tmp_path, leaves):
    options = SwapOptions(min_bytes=1 if leaves else MIB)
    with open_swap("disk", tmp_path, options) as swap:
        y = torch.randn(50, 30, requires_grad=True) * 2.0
        with swap.saving():
            loss = y.square().sum()
        swap.drain()
        y.detach()[3:5].view(-1).add_(1.0)
        message = r"float32 tensor of shape \(50, 30\) was changed in place.*clone the tensor"
        with pytest.raises(RuntimeError, match=message):
            loss.backward()
        del loss
        gc.collect()


def test_a_storage_saved_again_after_a_change_is_another(tmp_path):
    with open_swap("host", tmp_path) as swap:
        x = torch.ones(10, 10, requires_grad=True)
        with swap.saving():
            y = x * 3.0
            first = y.detach().clone().requires_grad_()
            y.add_(1.0)
            loss = y.square().sum() + first.square().sum()
        loss.backward()
        del loss
        assert torch.equal(x.grad, torch.full((10, 10), 24.0))


def test_small_tensors_and_those_behind_the_cut_off_stay(tmp_path):
    model, x = mlp(), torch.randn(64, 40)
    with open_swap("host", tmp_path) as swap:
        with swap.saving():
            model(x).square().sum().backward()
        all_bytes = swap.take_stats().stored_bytes
        scopes = swap.scopes()
        assert sum(scope.saved_bytes for scope in scopes) == all_bytes
        assert first_kept(scopes, bytes_per_s=1e30) == len(scopes)
        swap.cut_off = 3
        with swap.saving():
            model(x).square().sum().backward()
        stats = swap.take_stats()
        assert stats.stored_bytes == sum(scope.saved_bytes for scope in scopes[:3])
    with open_swap("host", tmp_path, SwapOptions(min_bytes=64 * 40 * 4 + 1)) as swap:
        with swap.saving():
            model(x).square().sum().backward()
        stats = swap.take_stats()
        assert 0 < stats.stored_bytes < all_bytes
        assert stats.kept_bytes > 0


def test_an_exception_in_forward_leaves_nothing(tmp_path):
    model = mlp()

    def failing():
        with swap.saving():
            model(torch.randn(64, 40)).square().sum()
            raise KeyError("planted")

    with open_swap("disk", tmp_path) as swap:
        with pytest.raises(KeyError, match="planted"):
            failing()
        gc.collect()
        with swap.saving():
            model(torch.randn(64, 40)).square().sum().backward()


def test_a_tier_without_room_says_so_and_keeps_its_state(tmp_path):
    store = HostStore(4096, pin=False)
    swap = ActivationSwap(store, EVERYTHING, device=torch.device("cpu"))
    x = torch.randn(64, 64, requires_grad=True) * 1.0
    with (
        pytest.raises(RuntimeError, match=r"no room for 16384 bytes in host.*capacity_bytes"),
        swap.saving(),
    ):
        x.square()
    assert (swap.live_bytes, store.free_bytes) == (0, 4096)
    swap.close()


def test_what_finds_no_room_may_stay(tmp_path):
    options = SwapOptions(min_bytes=1, keep_when_full=True)
    store = HostStore(8192, pin=False)
    swap = ActivationSwap(store, options, device=torch.device("cpu"))
    x = torch.randn(40, 40, requires_grad=True)
    with swap.saving():
        y = (x * 2.0).exp().sin().exp()
    swap.drain()
    stats = swap.take_stats()
    assert (stats.stored_bytes, stats.away_peak_bytes) == (6400, 6400)
    assert stats.kept_bytes == 6400
    (found,) = torch.autograd.grad(y.sum(), x)
    (wanted,) = torch.autograd.grad((x * 2.0).exp().sin().exp().sum(), x)
    assert torch.equal(found, wanted)
    del y
    swap.settle()
    assert (swap.live_bytes, store.free_bytes) == (0, 8192)
    assert swap.take_stats().away_bytes == 0
    swap.close()


def test_other_kinds_of_tensors_pass_through(tmp_path):
    sparse = torch.eye(6).to_sparse()
    weight = torch.randn(6, 3, requires_grad=True)
    z = torch.randn(8, dtype=torch.complex64, requires_grad=True)
    with open_swap("host", tmp_path) as swap:
        with swap.saving():
            loss = torch.sparse.mm(sparse, weight * 2).square().sum() + (z * z.conj()).abs().sum()
        loss.backward()
        del loss
    assert torch.allclose(weight.grad, 8 * weight)


@pytest.mark.gpu
def test_on_a_device_gradients_and_memory(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    model, x = mlp(256, 12).cuda(), torch.randn(8192, 256, device="cuda")
    expected = [g.clone() for g in torch.autograd.grad(model(x).sum(), list(model.parameters()))]
    with save_on_cpu(pin_memory=True):
        torch.autograd.grad(model(x).sum(), list(model.parameters()))
    swap = ActivationSwap(
        HostStore(1 << 30, pin=True), SwapOptions(prefetch_bytes=64 * MIB, max_in_flight_bytes=MIB)
    )
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with swap.saving():
        loss = model(x).sum()
    found = torch.autograd.grad(loss, list(model.parameters()))
    saved_bytes = swap.take_stats().stored_bytes
    assert torch.cuda.max_memory_allocated() - before < saved_bytes
    assert same_bits(list(found), expected)
    swap.close()
