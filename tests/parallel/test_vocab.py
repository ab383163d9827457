import pytest
import torch
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh

from comms.ledger import Ledger
from comms.volume import all_reduce_bytes, gather_bytes
from parallel.tensor.axis import TensorAxis
from parallel.vocab import (
    IGNORED_LABEL,
    vocabulary_parallel_log_probs,
    vocabulary_parallel_logits,
    vocabulary_parallel_loss_sum,
)
from tests.ranks import run_on_ranks

TOKENS, WIDTH, VOCABULARY = 29, 24, 96
CHUNKS = (1, 7, 29, 1000)


def inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator).to(dtype).requires_grad_(True)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype).requires_grad_(True)
    labels = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    labels[::5] = IGNORED_LABEL
    return hidden, weight, labels


def plain(hidden, weight, labels):
    return F.cross_entropy((hidden @ weight.t()).float(), labels, reduction="sum")


def rows_of(weight, rank, ranks):
    return weight.detach().chunk(ranks)[rank].clone().requires_grad_(True)


def one_case(axis, dtype, chunk_tokens, *, ignore_all=False, scale=1.0):
    hidden, weight, labels = inputs(dtype)
    hidden = (hidden.detach() * scale).requires_grad_(True)
    own = rows_of(weight, axis.rank, axis.ranks)
    if ignore_all:
        labels = torch.full_like(labels, IGNORED_LABEL)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        loss = vocabulary_parallel_loss_sum(hidden, own, labels, chunk_tokens, axis)
    grads = torch.autograd.grad(loss * 0.37, (hidden, own))
    return loss.detach(), grads, sorted(kept)


def checks(rank, ranks):
    ledger = Ledger()
    axis = TensorAxis(init_device_mesh("cpu", (ranks,), mesh_dim_names=("tp",)), ledger)
    cases = {chunk: one_case(axis, torch.float32, chunk) for chunk in CHUNKS}
    ledger.take()
    one_case(axis, torch.float32, 7)
    sent, _ = ledger.take()
    hidden, weight, labels = inputs()
    own = rows_of(weight, rank, ranks)
    with torch.no_grad():
        quiet = vocabulary_parallel_loss_sum(hidden, own, labels, 7, axis)
    quiet_sent, _ = ledger.take()
    logits = vocabulary_parallel_logits(hidden, own, axis)
    logits_loss = F.cross_entropy(logits, labels, reduction="sum")
    logp = vocabulary_parallel_log_probs(hidden, own, labels, 7, axis)
    factor = torch.linspace(-1.0, 2.0, TOKENS)
    return {
        "cases": cases,
        "log_probs": (logp.detach(), torch.autograd.grad(logp, (hidden, own), factor)),
        "sent": sent,
        "quiet": (quiet, quiet.requires_grad, quiet_sent),
        "logits": logits.detach(),
        "logits_grads": torch.autograd.grad(logits_loss, (hidden, own)),
        "bf16": one_case(axis, torch.bfloat16, 4),
        "ignored": one_case(axis, torch.float32, 8, ignore_all=True),
        "huge": one_case(axis, torch.float32, 8, scale=1e4),
    }


@pytest.fixture(scope="module", params=[2, 3])
def on_ranks(request):
    return run_on_ranks(request.param, checks, request.param)


def whole(results, find):
    """Loss and gradients put together from all ranks' parts."""
    parts = [find(result) for result in results]
    weight_grad = torch.cat([grads[1] for _, grads, *_ in parts])
    return parts[0][0], (parts[0][1][0], weight_grad)


@pytest.mark.parametrize("chunk_tokens", CHUNKS)
def test_equals_cross_entropy_with_its_gradients(on_ranks, chunk_tokens):
    hidden, weight, labels = inputs()
    wanted = plain(hidden, weight, labels)
    loss, grads = whole(on_ranks, lambda r: r["cases"][chunk_tokens])
    torch.testing.assert_close(loss, wanted.detach(), rtol=1e-6, atol=0)
    for got, want in zip(grads, torch.autograd.grad(wanted * 0.37, (hidden, weight)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=3e-6)


def test_loss_and_hidden_gradient_are_bitwise_the_same_on_all_ranks(on_ranks):
    first = on_ranks[0]["cases"]
    for result in on_ranks[1:]:
        for chunk, (loss, grads, _) in result["cases"].items():
            assert torch.equal(loss, first[chunk][0])
            assert torch.equal(grads[0], first[chunk][1][0])


def test_bf16_is_as_close_to_fp64_as_the_one_rank_loss_is(on_ranks):
    hidden, weight, labels = inputs(torch.bfloat16)
    exact = F.cross_entropy(hidden.double() @ weight.double().t(), labels, reduction="sum")
    loss, grads = whole(on_ranks, lambda r: r["bf16"])
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact.detach(), rtol=5e-3, atol=0)
    for got, want in zip(grads, torch.autograd.grad(exact * 0.37, (hidden, weight)), strict=True):
        assert got.dtype == torch.bfloat16
        assert (got.double() - want.double()).norm() < 0.01 * want.double().norm()


def test_no_label_gives_zero_with_zero_gradients(on_ranks):
    for result in on_ranks:
        loss, grads, _ = result["ignored"]
        assert loss.item() == 0.0
        assert not any(grad.any() for grad in grads)


def test_large_logits_do_not_overflow(on_ranks):
    hidden, weight, labels = inputs()
    loss, grads = whole(on_ranks, lambda r: r["huge"])
    torch.testing.assert_close(
        loss, plain(hidden * 1e4, weight, labels).detach(), rtol=1e-6, atol=0
    )
    assert all(grad.isfinite().all() for grad in grads)


def test_no_more_than_a_chunk_of_this_ranks_logits_is_kept(on_ranks):
    for result in on_ranks:
        assert result["cases"][7][2] == [(TOKENS, WIDTH), (VOCABULARY // len(on_ranks), WIDTH)]


def test_bytes_are_those_of_the_formula(on_ranks):
    ranks = len(on_ranks)
    sizes = [7, 7, 7, 7, 1]
    gathered = sum(gather_bytes(ranks * 8 * size, ranks) for size in sizes)
    summed = sum(all_reduce_bytes(4 * WIDTH * size, ranks) for size in sizes)
    for result in on_ranks:
        assert result["sent"] == {"tp/all_gather": gathered, "tp/all_reduce": summed}
        loss, requires_grad, sent = result["quiet"]
        assert sent == {"tp/all_gather": gathered}
        assert not requires_grad
        assert torch.equal(loss, result["cases"][7][0])


def test_logits_are_whole_everywhere_with_their_gradients(on_ranks):
    hidden, weight, labels = inputs()
    wanted = hidden @ weight.t()
    loss = F.cross_entropy(wanted, labels, reduction="sum")
    wanted_grads = torch.autograd.grad(loss, (hidden, weight))
    for result in on_ranks:
        torch.testing.assert_close(result["logits"], wanted.detach(), rtol=1e-5, atol=1e-5)
    _, grads = whole(on_ranks, lambda r: (None, r["logits_grads"]))
    for got, want in zip(grads, wanted_grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_log_probabilities_are_those_of_one_rank_with_their_gradients(on_ranks):
    hidden, weight, labels = inputs()
    log_p = (hidden @ weight.t()).log_softmax(-1)
    picked = log_p.gather(1, labels.clamp(min=0).unsqueeze(1)).squeeze(1)
    wanted = torch.where(labels != IGNORED_LABEL, picked, 0.0)
    grads = torch.autograd.grad(wanted, (hidden, weight), torch.linspace(-1.0, 2.0, TOKENS))
    for rank, found in enumerate(on_ranks):
        logp, (grad_hidden, grad_weight) = found["log_probs"]
        assert torch.equal(logp, on_ranks[0]["log_probs"][0])
        assert torch.equal(grad_hidden, on_ranks[0]["log_probs"][1][0])
        torch.testing.assert_close(logp, wanted.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(grad_hidden, grads[0], rtol=1e-5, atol=2e-6)
        own = grads[1].chunk(len(on_ranks))[rank]
        torch.testing.assert_close(grad_weight, own, rtol=1e-5, atol=2e-6)
