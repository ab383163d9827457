from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from tests.trainer.model.batches import make_batch, sequence_of
from trainer.model.config import Architecture, MoeConfig, RopeScaling
from trainer.model.decoder import Decoder
from trainer.model.init import init_weights

DENSE = Architecture(
    vocab_size=61,
    hidden_size=24,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=40,
    init_std=0.2,
)
MOE = replace(
    DENSE,
    qk_norm=True,
    tie_embeddings=True,
    sliding_window=4,
    sliding_window_from_layer=2,
    moe=MoeConfig(
        num_experts=5,
        top_k=2,
        expert_intermediate_size=12,
        shared_intermediate_size=8,
        scoring="sigmoid",
        aux_loss_weight=0.1,
        z_loss_weight=0.01,
        bias_update_rate=0.01,
        first_dense_layers=1,
    ),
)
SEQUENCES = [[7, 5], [3, -9], [12]]


def make_model(architecture, seed=0):
    with torch.device("meta"):
        model = Decoder(architecture)
    model.to_empty(device="cpu")
    init_weights(model, seed)
    return model


def losses_and_gradients(model, batches):
    model.zero_grad()
    parts = [model(batch) for batch in batches]
    for part in parts:
        (part.loss_sum + part.aux_sum).backward()
    sums = [sum(part.loss_sum for part in parts), sum(part.aux_sum for part in parts)]
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    return [s.detach() for s in sums], sum(part.expert_load for part in parts), gradients


@pytest.mark.parametrize("architecture", [DENSE, MOE], ids=["dense", "moe"])
def test_splitting_sequences_over_calls_gives_the_same_sums_and_gradients(architecture):
    model, batch = make_model(architecture), make_batch(SEQUENCES, 61)
    sums, load, gradients = losses_and_gradients(model, [batch])
    parts = [sequence_of(batch, i) for i in range(3)]
    split_sums, split_load, split_gradients = losses_and_gradients(model, parts)
    torch.testing.assert_close(split_sums, sums, rtol=2e-6, atol=1e-6)
    assert torch.equal(split_load, load)
    for name, gradient in gradients.items():
        torch.testing.assert_close(split_gradients[name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", [DENSE, MOE], ids=["dense", "moe"])
def test_the_loss_is_cross_entropy_of_the_logits(architecture):
    model, batch = make_model(architecture), make_batch(SEQUENCES, 61)
    model.loss_chunk_tokens = 10
    logits = model.logits(batch.tokens_T, batch.positions_T, batch.document_ends)
    wanted = torch.nn.functional.cross_entropy(logits, batch.labels_T, reduction="sum")
    torch.testing.assert_close(model(batch).loss_sum, wanted, rtol=1e-5, atol=0)
    last = model.logits(batch.tokens_T, batch.positions_T, batch.document_ends, last_only=True)
    torch.testing.assert_close(last, logits[-1:])


@pytest.mark.parametrize("architecture", [DENSE, MOE], ids=["dense", "moe"])
def test_padding_alone_gives_zero_and_zero_gradients_everywhere(architecture):
    sums, load, gradients = losses_and_gradients(
        make_model(architecture), [make_batch([[-12], [-12]], 61)]
    )
    assert [s.item() for s in sums] == [0.0, 0.0]
    assert not load.any()
    assert not any(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("architecture", [DENSE, MOE], ids=["dense", "moe"])
def test_recomputation_changes_no_bit_and_may_be_switched_every_step(architecture):
    model, batch = make_model(architecture), make_batch(SEQUENCES, 61)
    kept_sums, kept_load, kept = losses_and_gradients(model, [batch])
    model.recompute = True
    sums, load, gradients = losses_and_gradients(model, [batch])
    assert sums == kept_sums
    assert torch.equal(load, kept_load)
    assert all(torch.equal(gradients[name], kept[name]) for name in kept)


def test_recomputation_keeps_less():
    model, batch = make_model(DENSE), make_batch([[60]], 61)

    def kept_bytes():
        sizes = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.nbytes) or t, lambda t: t
        )
        with hooks:
            model(batch)
        return sum(sizes)

    everything = kept_bytes()
    model.recompute = True
    assert kept_bytes() < everything / 2


def test_a_dense_model_has_no_expert_statistics():
    parts = make_model(DENSE)(make_batch(SEQUENCES, 61))
    assert parts.aux_sum.item() == 0.0
    assert parts.expert_load.shape == (0, 0)


def test_expert_load_counts_real_tokens_of_every_mixture_layer():
    parts = make_model(MOE)(make_batch(SEQUENCES, 61))
    assert parts.expert_load.shape == (2, 5)
    assert parts.expert_load.sum(1).tolist() == [2 * 27, 2 * 27]
    assert not parts.expert_load.requires_grad


def test_the_selection_bias_moves_against_the_load():
    model = make_model(MOE)
    load = torch.tensor([[4.0, 0, 2, 2, 2], [1, 1, 1, 1, 1]])
    model.update_expert_bias(load, 0.5)
    model.update_expert_bias(load, 0.5)
    biases = [model.layers[i].mlp.gate.expert_bias.tolist() for i in (1, 2)]
    assert biases == [[-1.0, 1.0, 0.0, 0.0, 0.0], [0.0] * 5]


def test_the_selection_bias_evens_out_the_load():
    model, batch = make_model(MOE, seed=3), make_batch([[64]] * 4, 61)
    first = model(batch).expert_load.std()
    for _ in range(60):
        model.update_expert_bias(model(batch).expert_load, 0.01)
    assert model(batch).expert_load.std() < first / 3


@pytest.mark.parametrize("kind", ["dynamic", "linear", "llama3", "yarn"])
def test_a_document_is_the_same_whatever_it_is_packed_with(kind):
    scaling = RopeScaling(kind=kind, factor=4.0, original_context_tokens=8)
    model = make_model(replace(DENSE, rope_scaling=scaling))
    batch = make_batch([[20, 6, 11]], 61)
    packed = model.logits(batch.tokens_T, batch.positions_T, batch.document_ends)
    alone = model.logits(batch.tokens_T[20:26], batch.positions_T[20:26], (6,))
    torch.testing.assert_close(packed[20:26], alone, rtol=1e-4, atol=1e-5)


def test_bf16_follows_fp32():
    model, batch = make_model(MOE), make_batch(SEQUENCES, 61)
    wanted = model(batch).loss_sum
    parts = model.to(torch.bfloat16)(batch)
    parts.loss_sum.backward()
    assert parts.loss_sum.dtype == parts.aux_sum.dtype == torch.float32
    torch.testing.assert_close(parts.loss_sum, wanted, rtol=0.05, atol=0)


# While it traces, Dynamo itself does what torch warns about.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", [DENSE, MOE], ids=["dense", "moe"])
def test_new_document_lengths_do_not_compile_blocks_anew(architecture):
    model, counter = make_model(architecture), CompileCounter()
    wanted = [model(make_batch(s, 61)).loss_sum for s in ([[7, 5]], [[2, 10]], [[4, 4, -4]])]
    torch._dynamo.reset()
    for block in model.layers:
        block.compile(backend=counter)
    frames = []
    for sequences, want in zip(([[7, 5]], [[2, 10]], [[4, 4, -4]]), wanted, strict=True):
        torch.testing.assert_close(model(make_batch(sequences, 61)).loss_sum, want)
        frames.append(counter.frame_count)
    assert frames[0] == frames[1] == frames[2] > 0
