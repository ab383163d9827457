import pytest
import torch
import torch.nn.functional as F

from trainer.data.batch import IGNORED
from trainer.model.loss import token_log_probs, token_loss_sum

TOKENS, WIDTH, VOCABULARY = 29, 24, 101


def inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator).to(dtype).requires_grad_(True)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype).requires_grad_(True)
    labels = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    labels[::5] = IGNORED
    return hidden, weight, labels


def reference(hidden, weight, labels):
    return F.cross_entropy(
        (hidden @ weight.t()).float(), labels, ignore_index=IGNORED, reduction="sum"
    )


@pytest.mark.parametrize("chunk_tokens", [1, 7, 29, 1000])
def test_equals_cross_entropy_with_its_gradients(chunk_tokens):
    hidden, weight, labels = inputs()
    loss = token_loss_sum(hidden, weight, labels, chunk_tokens)
    wanted = reference(hidden, weight, labels)
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)
    for got, want in zip(
        torch.autograd.grad(loss * 0.37, (hidden, weight)),
        torch.autograd.grad(wanted * 0.37, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=2e-6)


def test_bf16_is_as_close_to_fp64_as_plain_cross_entropy():
    hidden, weight, labels = inputs(torch.bfloat16)
    exact = reference(hidden.double(), weight.double(), labels)
    exact_grads = torch.autograd.grad(exact, (hidden, weight))
    loss = token_loss_sum(hidden, weight, labels, 4)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact.double(), rtol=5e-3, atol=0)
    for got, want in zip(torch.autograd.grad(loss, (hidden, weight)), exact_grads, strict=True):
        assert got.dtype == torch.bfloat16
        assert (got.double() - want.double()).norm() < 0.01 * want.double().norm()


def test_no_label_gives_zero_with_zero_gradients():
    hidden, weight, labels = inputs()
    loss = token_loss_sum(hidden, weight, torch.full_like(labels, IGNORED), 8)
    assert loss.item() == 0.0
    for gradient in torch.autograd.grad(loss, (hidden, weight)):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_no_more_than_a_chunk_of_logits_is_kept():
    hidden, weight, labels = inputs()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        token_loss_sum(hidden, weight, labels, 4)
    assert sorted(kept) == [(TOKENS, WIDTH), (VOCABULARY, WIDTH)]


def test_without_gradients_nothing_is_kept_and_the_loss_is_the_same():
    hidden, weight, labels = inputs()
    with torch.no_grad():
        loss = token_loss_sum(hidden, weight, labels, 8)
    assert not loss.requires_grad
    assert torch.equal(loss, token_loss_sum(hidden, weight, labels, 8).detach())


def reference_log_probs(hidden, weight, labels):
    log_p = (hidden @ weight.t()).float().log_softmax(-1)
    picked = log_p.gather(1, labels.clamp(min=0).unsqueeze(1)).squeeze(1)
    return torch.where(labels != IGNORED, picked, 0.0)


@pytest.mark.parametrize("chunk_tokens", [1, 7, 29, 1000])
def test_log_probabilities_of_labels_with_their_gradients(chunk_tokens):
    hidden, weight, labels = inputs()
    # What is made of them differs from token to token, and is not even finite where none is wanted.
    factor = torch.linspace(-1.0, 2.0, TOKENS).masked_fill(labels == IGNORED, float("nan"))
    logp = token_log_probs(hidden, weight, labels, chunk_tokens)
    wanted = reference_log_probs(hidden, weight, labels)
    torch.testing.assert_close(logp, wanted, rtol=1e-5, atol=1e-6)
    assert (logp[labels == IGNORED] == 0.0).all()
    kept = factor.nan_to_num()
    for got, want in zip(
        torch.autograd.grad(logp, (hidden, weight), factor),
        torch.autograd.grad(wanted, (hidden, weight), kept),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=2e-6)


def test_log_probabilities_in_bf16_keep_fp32_and_add_up_to_the_loss():
    hidden, weight, labels = inputs(torch.bfloat16)
    logp = token_log_probs(hidden, weight, labels, 4)
    assert logp.dtype == torch.float32
    grads = torch.autograd.grad(-logp.sum(), (hidden, weight))
    loss = token_loss_sum(hidden, weight, labels, 4)
    torch.testing.assert_close(-logp.sum(), loss, rtol=1e-5, atol=0)
    for got, want in zip(grads, torch.autograd.grad(loss, (hidden, weight)), strict=True):
        assert got.dtype == torch.bfloat16
        assert (got.double() - want.double()).norm() < 0.01 * want.double().norm()
