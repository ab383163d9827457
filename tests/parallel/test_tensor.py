import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from comms.ledger import Ledger
from comms.volume import all_reduce_bytes
from parallel.tensor.axis import TensorAxis
from parallel.tensor.layers import (
    HALVES_OF_LAST,
    ColumnLinear,
    HeadNorm,
    RowLinear,
    VocabularyEmbedding,
    begin_region_at,
    cut,
    end_region_at,
    tensor_copies,
)
from tests.ranks import run_on_ranks

WIDTH, HIDDEN, TOKENS, VOCABULARY = 6, 12, 5, 16


class FeedForward(nn.Module):
    """A plain module with biases, a norm over heads and an embedding below."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.inner = nn.Module()
        self.region = Region()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        return x + self.region(x)


class Region(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.heads = nn.RMSNorm(3, eps=1e-5)
        self.down = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.heads(self.up(x).unflatten(-1, (-1, 3)))
        return self.down(torch.tanh(heads.flatten(1)))


def plain() -> FeedForward:
    torch.manual_seed(0)
    return FeedForward()


def split(model: FeedForward, axis: TensorAxis, *, sums: bool = True) -> FeedForward:
    region = model.region
    model.embed = VocabularyEmbedding(model.embed, axis)
    region.up = ColumnLinear(region.up, axis)
    region.heads = HeadNorm(region.heads, axis)
    if not sums:
        region.down.bias = None
        end_region_at(region, axis)
    region.down = RowLinear(region.down, axis, sums=sums)
    begin_region_at(region, axis)
    return model


def tokens() -> torch.Tensor:
    return torch.tensor([3, 0, 15, 7, 3])


def full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: full(p.grad).clone() for name, p in model.named_parameters()}


def checks(rank, ranks):
    """Everything that the tests below look at, from one start of the ranks."""
    mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("tp",))
    ledger = Ledger()
    axis = TensorAxis(mesh, ledger)
    model = split(plain(), axis)
    out = model(tokens())
    forward_bytes, _ = ledger.take()
    out.square().sum().backward()
    backward_bytes, waited_s = ledger.take()
    partial = split(plain(), axis, sums=False)
    partial(tokens()).square().sum().backward()
    halves = torch.arange(2 * 3 * 8.0).view(2, 3, 8)
    stacked = cut(nn.Parameter(halves), HALVES_OF_LAST, axis)
    logits = torch.full((2, 3), float(rank), requires_grad=True)
    gathered = axis.gather_last(logits)
    (gathered * torch.arange(3.0 * ranks)).sum().backward()
    return {
        "out": out.detach(),
        "grads": gradients(model),
        "names": [name for name, _ in model.named_parameters()],
        "copies": tensor_copies(model, axis),
        "forward": forward_bytes,
        "backward": backward_bytes,
        "waited_s": waited_s,
        "partial": gradients(partial),
        "stacked": stacked.to_local().detach(),
        "stacked_full": torch.equal(stacked.full_tensor(), halves),
        "gathered": gathered.detach(),
        "gathered_grad": logits.grad,
        "errors": errors(axis),
    }


def errors(axis):
    messages = []
    for bad in (
        lambda: ColumnLinear(nn.Linear(4, 7), axis),
        lambda: RowLinear(nn.Linear(4, 4), axis, sums=False),
        lambda: ColumnLinear(ColumnLinear(nn.Linear(4, 4), axis), axis),
        lambda: TensorAxis(init_device_mesh("cpu", (1, axis.ranks)), Ledger()),
    ):
        with pytest.raises(ValueError, match=r"choose one of|sums=True|apply tensor|one of its"):
            bad()
        messages.append(True)
    return messages


@pytest.fixture(scope="module")
def on_two():
    return run_on_ranks(2, checks, 2)


def reference(*, bias: bool = True):
    model = plain()
    if not bias:
        model.region.down.bias = None
    out = model(tokens())
    out.square().sum().backward()
    return out.detach(), {name: p.grad for name, p in model.named_parameters()}


def test_layers_equal_the_plain_ones_with_their_gradients(on_two):
    out, grads = reference()
    for result in on_two:
        torch.testing.assert_close(result["out"], out, rtol=1e-6, atol=1e-6)
        assert result["names"] == list(grads)
        for name, grad in grads.items():
            torch.testing.assert_close(result["grads"][name], grad, rtol=1e-5, atol=1e-6)


def test_the_end_of_a_region_may_be_at_a_module(on_two):
    _, grads = reference(bias=False)
    for result in on_two:
        for name, grad in grads.items():
            torch.testing.assert_close(result["partial"][name], grad, rtol=1e-5, atol=1e-6)


def test_what_is_whole_is_bitwise_the_same_on_all_ranks(on_two):
    first, second = on_two
    assert torch.equal(first["out"], second["out"])
    for name in first["grads"]:
        assert torch.equal(first["grads"][name], second["grads"][name])


def test_every_byte_is_counted(on_two):
    activations = all_reduce_bytes(4 * TOKENS * WIDTH, 2)
    for result in on_two:
        assert result["forward"] == {"tp/all_reduce": 2 * activations}
        assert result["backward"] == {"tp/all_reduce": activations + all_reduce_bytes(4 * 3, 2)}
        assert result["waited_s"] > 0


def test_copies_say_which_parameters_are_whole(on_two):
    copies = on_two[0]["copies"]
    assert {name for name, number in copies.items() if number == 2} == {
        "region.heads.weight",
        "region.down.bias",
    }
    assert set(copies.values()) == {1, 2}


def test_both_halves_of_a_stacked_weight_are_cut(on_two):
    halves = torch.arange(2 * 3 * 8.0).view(2, 3, 2, 4)
    for rank, result in enumerate(on_two):
        mine = halves[..., 2 * rank : 2 * rank + 2].flatten(2)
        assert torch.equal(result["stacked"], mine)
        assert result["stacked_full"]


def test_gathered_parts_lie_in_order_and_get_their_own_gradient(on_two):
    for rank, result in enumerate(on_two):
        assert torch.equal(result["gathered"][0], torch.tensor([0.0, 0, 0, 1, 1, 1]))
        assert torch.equal(result["gathered_grad"][0], torch.arange(3.0) + 3 * rank)


def test_bad_sizes_and_uses_are_refused(on_two):
    assert on_two[0]["errors"] == [True] * 4
