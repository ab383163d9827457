from dataclasses import replace

import pytest
import torch

from tests.trainer.model.batches import make_batch
from trainer.model.config import MoeConfig
from trainer.model.moe import MoeFeedForward, Routing, moe_stats
from trainer.model.packing import Packing, SequenceWeights, sequence_weights

WIDTH = 12
MOE = MoeConfig(
    num_experts=6, top_k=2, expert_intermediate_size=10, aux_loss_weight=0.1, z_loss_weight=0.01
)
SEQUENCES = [[7, 5], [3, -4], [9]]
TOKENS = 28


def make_moe(moe, num_experts=0):
    module = MoeFeedForward(WIDTH, moe, num_experts)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return module


def hidden(tokens, seed=5):
    return torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def packing_of(sequences):
    batch = make_batch(sequences, 50)
    return Packing(document_ends=batch.document_ends, sequences=sequence_weights(batch))


def run(module, sequences, x_TD):
    return module(x_TD, packing_of(sequences))


def by_hand(module, x_D):
    """One token, every expert computed alone."""
    moe, logits = module.moe, module.gate.weight @ x_D
    scores = logits.softmax(0) if moe.scoring == "softmax" else logits.sigmoid()
    chosen = (scores + module.gate.expert_bias).topk(moe.top_k).indices
    weights = scores[chosen]
    if moe.normalize_top_k:
        weights = weights / weights.sum()
    out = torch.zeros(WIDTH)
    for weight, expert in zip(weights * moe.routed_scale, chosen, strict=True):
        gate, up = (x_D @ module.experts.gate_up_proj[expert]).chunk(2)
        out += weight * ((torch.nn.functional.silu(gate) * up) @ module.experts.down_proj[expert])
    if module.shared_experts is not None:
        out += module.shared_experts(x_D)
    return out


@pytest.mark.parametrize(
    "moe",
    [
        MOE,
        replace(MOE, scoring="sigmoid", routed_scale=2.5, shared_intermediate_size=8),
        replace(MOE, normalize_top_k=False, top_k=1),
        replace(MOE, top_k=6),
    ],
)
def test_every_token_meets_its_experts_and_none_is_dropped(moe):
    module, x_TD = make_moe(moe), hidden(28)
    module.gate.expert_bias.copy_(torch.linspace(-0.2, 0.2, 6))
    y_TD, _ = run(module, SEQUENCES, x_TD)
    wanted_TD = torch.stack([by_hand(module, x_D) for x_D in x_TD])
    torch.testing.assert_close(y_TD, wanted_TD, rtol=1e-4, atol=1e-5)


def test_the_bias_decides_who_is_chosen_and_never_how_much_they_weigh():
    module = make_moe(replace(MOE, normalize_top_k=False, top_k=1))
    x_TD = hidden(20)
    module.gate.expert_bias[3] = 10.0
    routing = module.gate(x_TD)
    assert (routing.experts_Tk == 3).all()
    assert torch.equal(routing.weights_Tk[:, 0], routing.shares_TE[:, 3])
    assert routing.weights_Tk.requires_grad
    assert not module.gate.expert_bias.requires_grad


def test_all_tokens_to_one_expert_still_gives_every_parameter_a_gradient():
    module = make_moe(replace(MOE, top_k=1))
    module.gate.expert_bias[4] = 10.0
    y_TD, stats = run(module, [[28]], hidden(28))
    (y_TD.sum() + stats.aux).backward()
    assert stats.load_E.tolist() == [0, 0, 0, 0, 28, 0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_statistics_of_a_batch_are_the_sum_over_its_sequences():
    module, x_TD = make_moe(MOE), hidden(28)
    _, whole = run(module, SEQUENCES, x_TD)
    parts, start = [], 0
    for sequence in SEQUENCES:
        end = start + sum(abs(length) for length in sequence)
        parts.append(run(module, [sequence], x_TD[start:end])[1])
        start = end
    torch.testing.assert_close(whole.aux, torch.stack([p.aux for p in parts]).sum())
    assert torch.equal(whole.load_E, torch.stack([p.load_E for p in parts]).sum(0))


def test_padding_is_in_no_statistic():
    module, x_TD = make_moe(MOE), hidden(28)
    _, before = run(module, SEQUENCES, x_TD)
    x_TD[15:19] = 100.0
    _, after = run(module, SEQUENCES, x_TD)
    assert torch.equal(before.aux, after.aux)
    assert torch.equal(before.load_E, after.load_E)
    assert after.load_E.sum() == MOE.top_k * (12 + 3 + 9)


def balanced(tokens, experts):
    """Each token wants the next expert in turn, with no preference in its scores."""
    logits_TE = torch.zeros(tokens, experts)
    experts_T1 = (torch.arange(tokens) % experts).unsqueeze(1)
    return Routing(experts_T1, torch.ones(tokens, 1), logits_TE.softmax(-1), logits_TE)


def stats_of(routing, targets, moe):
    tokens, experts = routing.shares_TE.shape
    assigned_TE = torch.zeros(tokens, experts).scatter_(1, routing.experts_Tk, 1.0)
    sequences = SequenceWeights(
        mean_ST=torch.full((1, tokens), 1 / tokens),
        targets_S=torch.tensor([float(targets)]),
        real_T=torch.ones(tokens),
    )
    return moe_stats(routing, assigned_TE, sequences, moe)


def test_perfect_balance_costs_exactly_the_weight_per_target():
    moe = replace(MOE, top_k=1, z_loss_weight=0.0)
    stats = stats_of(balanced(12, 6), 11, moe)
    assert stats.aux.item() == pytest.approx(11 * 0.1, rel=1e-6)


def test_collapse_costs_the_number_of_experts_times_the_weight():
    moe = replace(MOE, top_k=1, z_loss_weight=0.0)
    logits_TE = torch.full((12, 6), -1e4)
    logits_TE[:, 2] = 0.0
    routing = Routing(torch.full((12, 1), 2), torch.ones(12, 1), logits_TE.softmax(-1), logits_TE)
    assert stats_of(routing, 11, moe).aux.item() == pytest.approx(11 * 0.1 * 6, rel=1e-6)


def test_the_z_loss_is_the_mean_squared_log_partition():
    moe = replace(MOE, top_k=1, aux_loss_weight=0.0, z_loss_weight=0.5)
    wanted = 11 * 0.5 * torch.tensor(6.0).log().square().item()
    assert stats_of(balanced(12, 6), 11, moe).aux.item() == pytest.approx(wanted, rel=1e-6)


def test_backward_of_the_dispatch_is_that_of_plain_indexing():
    module, x_TD = make_moe(MOE), hidden(9).requires_grad_(True)
    y_TD, _ = run(module, [[9]], x_TD)
    wanted_TD = torch.stack([by_hand(module, x_D) for x_D in x_TD])
    upstream = hidden(9, seed=8)
    inputs = [x_TD, *module.parameters()]
    for got, want in zip(
        torch.autograd.grad(y_TD, inputs, upstream),
        torch.autograd.grad(wanted_TD, inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


NARROW = replace(MOE, dispatch_size=4, shared_intermediate_size=8)
RESIDUAL = replace(MOE, residual=True, shared_intermediate_size=8)
BOUNDED = replace(MOE, capacity_factor=0.5)
VARIANTS = [MOE, NARROW, RESIDUAL, BOUNDED, replace(RESIDUAL, dispatch_size=4, capacity_factor=0.5)]


def all_experts(module, x_TD, kept_Tk):
    """Every expert on every token, weighed and masked."""
    moe, routing = module.moe, module.gate(x_TD)
    h_TD = x_TD if module.descend is None else x_TD @ module.descend.weight.t()
    outputs = []
    for gate_up, down in zip(module.experts.gate_up_proj, module.experts.down_proj, strict=True):
        gate, up = (h_TD @ gate_up).chunk(2, dim=-1)
        outputs.append((torch.nn.functional.silu(gate) * up) @ down)
    chosen = routing.experts_Tk.unsqueeze(-1).expand(-1, -1, h_TD.shape[1])
    y_TkD = torch.stack(outputs, 1).gather(1, chosen)
    y_TD = (y_TkD * (routing.weights_Tk * kept_Tk).unsqueeze(-1)).sum(1)
    y_TD = y_TD if module.ascend is None else y_TD @ module.ascend.weight.t()
    if module.shared_experts is None:
        return y_TD
    shared_TD = module.shared_experts(x_TD)
    if not moe.residual:
        return y_TD + shared_TD
    linear = module.coefficients
    share_T2 = (x_TD @ linear.weight.t() + linear.bias).softmax(-1)
    return share_T2[:, :1] * y_TD + share_T2[:, 1:] * shared_TD


@pytest.mark.parametrize("moe", VARIANTS)
def test_outputs_and_gradients_of_a_variant_are_those_by_hand(moe):
    module, x_TD = make_moe(moe), hidden(TOKENS).requires_grad_(True)
    packing = packing_of([[TOKENS]])
    y_TD, stats = module(x_TD, packing)
    kept_Tk = module._kept(module.gate(x_TD).experts_Tk, packing.sequences)
    kept_Tk = torch.ones(TOKENS, 2, dtype=torch.bool) if kept_Tk is None else kept_Tk
    wanted_TD = all_experts(module, x_TD, kept_Tk)
    torch.testing.assert_close(y_TD, wanted_TD, rtol=1e-4, atol=1e-5)
    assert stats.dropped.item() == (~kept_Tk).sum().item()
    inputs, upstream = [x_TD, *module.parameters()], hidden(TOKENS, seed=8)
    for got, want in zip(
        torch.autograd.grad(y_TD, inputs, upstream),
        torch.autograd.grad(wanted_TD, inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_a_bounded_capacity_drops_what_is_beyond_it_and_counts_it_per_sequence():
    module = make_moe(BOUNDED)
    module.gate.expert_bias[3] = 10.0  # everybody's first choice
    x_TD = hidden(16 + 12)
    _, whole = module(x_TD, packing_of([[16], [9, -3]]))
    parts = [module(x_TD[:16], packing_of([[16]])), module(x_TD[16:], packing_of([[9, -3]]))]
    # Capacity of both: max(ceil(16 × 2 / 6 × 0.5), 4) = 4 rows of 16 and of 9 + 3.
    assert whole.dropped.item() >= (16 - 4) + (9 - 4)
    assert whole.dropped == parts[0][1].dropped + parts[1][1].dropped
    assert whole.load_E[3].item() == 16 + 9


def test_capacity_binds_neither_generation_nor_an_even_load():
    module, loose = make_moe(BOUNDED), make_moe(replace(MOE, capacity_factor=6.0))
    x_TD = hidden(TOKENS)
    free, _ = make_moe(MOE)(x_TD, packing_of([[TOKENS]]))
    alone, none = module(x_TD, Packing(document_ends=(TOKENS,)))
    assert none is None
    assert torch.equal(alone, free)
    y_TD, stats = loose(x_TD, packing_of([[TOKENS]]))
    assert stats.dropped.item() == 0
    assert torch.equal(y_TD, free)


@pytest.mark.parametrize("moe", VARIANTS)
def test_the_order_of_experts_makes_no_difference(moe):
    module, moved = make_moe(moe), make_moe(moe)
    slot_E = torch.tensor([4, 2, 5, 0, 1, 3])
    moved.experts.expert_slot.copy_(slot_E)
    with torch.no_grad():
        for name, stacked in moved.experts.named_parameters():
            stacked[slot_E] = module.experts.get_parameter(name)
    got, want = (m(hidden(TOKENS), packing_of([[TOKENS]])) for m in (moved, module))
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1].load_E, want[1].load_E)
    assert torch.equal(got[1].aux, want[1].aux)
    got[0].sum().backward()
    want[0].sum().backward()
    for name, stacked in moved.experts.named_parameters():
        assert torch.equal(stacked.grad[slot_E], module.experts.get_parameter(name).grad)


def test_the_load_of_a_smaller_layer_is_padded():
    module = make_moe(replace(MOE, pyramid=(4, 6)), num_experts=4)
    _, stats = module(hidden(TOKENS), packing_of([[TOKENS]]))
    assert stats.load_E.shape == (6,)
    assert stats.load_E[:4].sum() == 2 * TOKENS
    assert not stats.load_E[4:].any()


def test_given_experts_are_visited_and_weighed_by_the_scores():
    module = make_moe(MoeConfig(num_experts=5, top_k=2, expert_intermediate_size=9))
    x_TD = hidden(7)
    own_Tk = module.gate(x_TD).experts_Tk
    given_Tk = (own_Tk + 1) % 5
    given_Tk[3] = -1
    scores_TE = module.gate(x_TD).shares_TE
    found = module.gate(x_TD, given_Tk)
    wanted_Tk = torch.where(given_Tk >= 0, given_Tk, own_Tk)
    assert torch.equal(found.experts_Tk, wanted_Tk)
    weights_Tk = scores_TE.gather(1, wanted_Tk)
    weights_Tk = weights_Tk / weights_Tk.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(found.weights_Tk, weights_Tk)
    packing = Packing(document_ends=(7,), experts_Tk=own_Tk)
    plain, _ = module(x_TD, Packing(document_ends=(7,)))
    replayed, _ = module(x_TD, packing)
    assert torch.equal(plain, replayed)
    other, _ = module(x_TD, replace(packing, experts_Tk=given_Tk))
    torch.testing.assert_close(other[3], plain[3])
    assert not torch.allclose(other, plain)
